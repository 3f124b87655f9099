"""`diff` against whole tensors in numpy: what it streams must be what a plain comparison finds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from forking import surgeon_forked
from numpy.typing import NDArray

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import NUMPY_DTYPES, header_bytes
from surgeon.diff import entries
from surgeon.diff.comparison import compare
from surgeon.diff.diff import BYTEWISE, Diff, TensorDiff, compare_checkpoints
from surgeon.errors import InputError, RegionError
from surgeon.region.overlap import overlap
from surgeon.region.region import Region

Arrays = Mapping[str, NDArray[Any]]
DTYPE_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
BASE = "model.layers.{}.{}.weight"
DOWN, QUERY = BASE.format(0, "mlp.down_proj"), BASE.format(1, "self_attn.q_proj")


def write(path: Path, tensors: Arrays, dtypes: Mapping[str, str] | None = None) -> Path:
    specs = [
        (name, (dtypes or {}).get(name) or DTYPE_NAMES[array.dtype], array.shape) for name, array in tensors.items()
    ]
    if dtypes:  # packed dtypes: the array holds the bytes, the header counts the entries
        specs = [(name, dtype, (2 * shape[0],) if dtype == "F4" else shape) for name, dtype, shape in specs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header_bytes(specs, {"format": "pt"}) + b"".join(array.tobytes() for array in tensors.values()))
    return path


def write_sharded(folder: Path, tensors: Arrays) -> Path:
    folder.mkdir()
    weight_map = {}
    for i, (name, array) in enumerate(reversed(tensors.items()), 1):
        file = f"model-{i:05d}-of-{len(tensors):05d}.safetensors"
        write(folder / file, {name: array})
        weight_map[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def random_tensors(dtype: Any = np.float32) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    shapes = {DOWN: (16, 40), QUERY: (24, 16), BASE.format(0, "input_layernorm"): (16,), "lm_head.weight": (50, 16)}
    return {name: generator.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def poked(tensors: Arrays, seed: int = 1) -> dict[str, NDArray[Any]]:
    """Change some entries of each tensor: some to zero, some in sign, some in size."""
    generator = np.random.default_rng(seed)
    result = {name: array.copy() for name, array in tensors.items()}
    for array in result.values():
        flat = array.reshape(-1)
        at = generator.permutation(flat.size)[: flat.size // 3]
        flat[at[::3]] = 0
        flat[at[1::3]] = -flat[at[1::3]]
        flat[at[2::3]] = (flat[at[2::3]].astype(np.float64) * 1.5 + 0.25).astype(array.dtype)
    return result


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 64 entries, so that every tensor but the norms spans several."""
    monkeypatch.setattr(entries, "CHUNK", 64)


def found(tmp_path: Path, before: Arrays, after: Arrays, regions: Mapping[str, Region] | None = None) -> Diff:
    left = write(tmp_path / "before" / "model.safetensors", before)
    right = write(tmp_path / "after" / "model.safetensors", after)
    return compare_checkpoints(Checkpoint.open(left), Checkpoint.open(right), regions, jobs=2)


def by_name(result: Diff) -> dict[str, TensorDiff]:
    return {tensor.name: tensor for tensor in result.tensors}


DTYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_and_sizes_are_those_of_whole_tensors(tmp_path: Path, dtype: Any) -> None:
    before = random_tensors(dtype)
    after = poked(before)
    result = by_name(found(tmp_path, before, after))
    for name in before:
        old, new = before[name].astype(np.float64), after[name].astype(np.float64)
        change = result[name].change
        differ = old != new
        assert result[name].kind == "changed"
        assert change.entries == old.size
        assert change.changed == differ.sum() > 0
        assert change.zeroed == ((new == 0) & (old != 0)).sum()
        assert change.sign_flips == (old * new < 0).sum()
        assert change.largest == np.abs(new - old).max()
        assert change.l2 == pytest.approx(np.linalg.norm(new - old), rel=1e-12)
        assert change.relative == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-12)
        if old.ndim == 2:
            row, column = result[name].rows[0], result[name].columns[0]
            assert row == (differ.sum(axis=1).argmax(), differ.sum(axis=1).max())
            assert column == (differ.sum(axis=0).argmax(), differ.sum(axis=0).max())


def test_rollups_add_up_by_role_layer_and_residual_dimension(tmp_path: Path) -> None:
    before = random_tensors()
    after = poked(before)
    result = found(tmp_path, before, after)
    differ = {name: before[name] != after[name] for name in before}
    assert {role: change.changed for role, change in result.by_role().items()} == {
        "mlp.down": differ[DOWN].sum(), "attn.q": differ[QUERY].sum(),
        "norm": differ[BASE.format(0, "input_layernorm")].sum(), "head": differ["lm_head.weight"].sum(),
    }  # fmt: skip
    assert {layer: change.changed for layer, change in result.by_layer().items()} == {
        0: differ[DOWN].sum() + differ[BASE.format(0, "input_layernorm")].sum(),
        1: differ[QUERY].sum(), None: differ["lm_head.weight"].sum(),
    }  # fmt: skip
    # down writes the residual stream with its rows, q and the head read it with their columns
    hits = differ[DOWN].sum(1) + differ[QUERY].sum(0) + differ["lm_head.weight"].sum(0)
    hits = hits + differ[BASE.format(0, "input_layernorm")]
    assert [(i, n) for i, n, _ in result.dimensions(16)] == sorted(
        enumerate(hits), key=lambda item: (-item[1], item[0])
    )
    assert result.total.changed == sum(mask.sum() for mask in differ.values())


def test_sharding_is_no_difference(tmp_path: Path) -> None:
    tensors = random_tensors(ml_dtypes.bfloat16)
    whole = write(tmp_path / "whole" / "model.safetensors", tensors)
    shards = write_sharded(tmp_path / "shards", tensors)
    result = compare_checkpoints(Checkpoint.open(whole), Checkpoint.open(shards))
    assert result.identical
    assert result.total.changed == 0


def test_bits_decide_not_values(tmp_path: Path) -> None:
    zeros = {"layers.0.mlp.up_proj.weight": np.array([[0.0, 1.0, np.nan, np.inf]], np.float32)}
    other = {"layers.0.mlp.up_proj.weight": np.array([[-0.0, np.nan, np.nan, 2.0]], np.float32)}
    change = found(tmp_path, zeros, other).total
    assert (change.changed, change.not_finite, change.zeroed, change.sign_flips) == (3, 2, 0, 0)
    assert change.relative is None
    assert change.largest == 0.0


def test_kinds_of_difference_are_told_apart(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    make = lambda *shape: generator.normal(size=shape).astype(np.float32)  # noqa: E731
    kept, moved, gone, turned, cast = (
        make(4, 4),
        make(4, 4),
        make(
            5,
        ),
        make(2, 6),
        make(3, 3),
    )
    before = {"kept": kept, "old_name": moved, "gone": gone, "turned": turned, "cast": cast, "rounded": cast}
    after = {
        "kept": kept, "new_name": moved, "new": make(5,), "turned": turned.reshape(6, 2),
        "cast": cast.astype(np.float64), "rounded": cast.astype(ml_dtypes.bfloat16),
    }  # fmt: skip
    result = found(tmp_path, before, after)
    tensors = by_name(result)
    assert {name: tensor.kind for name, tensor in tensors.items()} == {
        "kept": "same", "old_name": "renamed", "gone": "missing", "new": "extra", "turned": "reshaped",
        "cast": "retyped", "rounded": "retyped",
    }  # fmt: skip
    assert tensors["old_name"].after is not None
    assert tensors["old_name"].after.name == "new_name"
    assert tensors["cast"].change.changed == 0
    assert tensors["rounded"].change.changed == (cast != cast.astype(ml_dtypes.bfloat16).astype(np.float32)).sum()
    assert not result.identical


def test_a_tensor_that_was_renamed_and_changed_is_known_again(tmp_path: Path) -> None:
    generator = np.random.default_rng(17)
    weights = generator.normal(size=(3, 20, 20)).astype(ml_dtypes.bfloat16)
    before = {f"layers.{i}.mlp.up_proj.weight": weight for i, weight in enumerate(weights)}
    before |= {f"layers.{i}.norm.weight": np.ones(20, ml_dtypes.bfloat16) for i in range(3)}
    after = {name.replace("layers", "model.layers"): array.copy() for name, array in reversed(before.items())}
    after["model.layers.1.mlp.up_proj.weight"][:5] = 0  # a quarter of the entries
    after["model.layers.1.norm.weight"][7] = 4
    after["model.layers.2.mlp.up_proj.weight"] = generator.normal(size=(20, 20)).astype(ml_dtypes.bfloat16)
    result = found(tmp_path, before, after)
    paired = {t.name: (t.kind, t.after and t.after.name, t.change.changed) for t in result.tensors}
    assert paired["layers.1.mlp.up_proj.weight"] == ("renamed_changed", "model.layers.1.mlp.up_proj.weight", 100)
    assert paired["layers.0.mlp.up_proj.weight"][:2] == ("renamed", "model.layers.0.mlp.up_proj.weight")
    assert paired["layers.2.mlp.up_proj.weight"][0] == "missing"
    assert paired["model.layers.2.mlp.up_proj.weight"][0] == "extra"
    assert paired["layers.1.norm.weight"] == ("renamed_changed", "model.layers.1.norm.weight", 1)
    assert [paired[f"layers.{i}.norm.weight"][1] for i in (0, 2)] == [f"model.layers.{i}.norm.weight" for i in (0, 2)]


def test_packed_entries_are_compared_byte_by_byte(tmp_path: Path) -> None:
    packed = np.arange(200, dtype=np.uint8)
    other = packed.copy()
    other[[3, 150]] ^= 1
    left = write(tmp_path / "a.safetensors", {"experts": packed}, {"experts": "F4"})
    right = write(tmp_path / "b.safetensors", {"experts": other}, {"experts": "F4"})
    tensor = compare_checkpoints(Checkpoint.open(left), Checkpoint.open(right)).tensors[0]
    assert (tensor.kind, tensor.change.changed, tensor.note) == ("changed", 2, BYTEWISE)


@pytest.mark.parametrize("density", [0.02, 0.6])
def test_inside_a_region(tmp_path: Path, density: float) -> None:
    before = random_tensors()
    after = poked(before)
    generator = np.random.default_rng(5)
    masks = {name: generator.random(before[name].shape) < density for name in (DOWN, QUERY)}
    result = found(tmp_path, before, after, {"r": Region.from_masks(masks)})
    differ = {name: before[name] != after[name] for name in before}
    inside = result.inside(0)
    assert inside.changed == sum((differ[name] & mask).sum() for name, mask in masks.items())
    squares = [((after[n].astype(np.float64) - before[n])[mask] ** 2).sum() for n, mask in masks.items()]
    assert inside.delta_square == pytest.approx(sum(squares), rel=1e-12)
    assert inside.entries == sum(mask.sum() for mask in masks.values())


def test_a_region_of_another_model_is_refused(tmp_path: Path) -> None:
    region = Region.from_masks({DOWN: np.ones((2, 2), np.bool_)})
    with pytest.raises(RegionError, match="belongs to another model"):
        found(tmp_path, random_tensors(), random_tensors(), {"r": region})


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_saved_region_holds_the_changed_entries(tmp_path: Path, share: float) -> None:
    before = random_tensors(ml_dtypes.bfloat16)
    generator = np.random.default_rng(7)
    masks = {name: generator.random(array.shape) < share for name, array in before.items()}
    masks["lm_head.weight"][:] = False
    after = {name: np.where(masks[name], array + array.dtype.type(8), array) for name, array in before.items()}
    left = write(tmp_path / "a" / "model.safetensors", before)
    right = write(tmp_path / "b" / "model.safetensors", after)
    path = tmp_path / "changed.region.safetensors"
    compare(left, right, save=path)
    saved = Region.load(path)
    assert set(saved) == {name for name, mask in masks.items() if mask.any()}
    for name in saved:
        np.testing.assert_array_equal(saved.mask(name), masks[name])


def test_nothing_to_save_is_said(tmp_path: Path) -> None:
    left = write(tmp_path / "a" / "model.safetensors", random_tensors())
    with pytest.raises(RegionError, match="no entry differs"):
        compare(left, left, save=tmp_path / "changed.safetensors")


def test_a_tied_head_that_only_one_stores_is_noted(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    tied = make_model("llama", tie_word_embeddings=True)
    checkpoint = Checkpoint.open(tied)
    stored = {name: np.array(checkpoint.array(name)) for name in checkpoint.tensors}
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    both = write(tmp_path / "both" / "model.safetensors", stored)
    (both.parent / "config.json").write_text((tied / "config.json").read_text())
    result = compare_checkpoints(checkpoint, Checkpoint.open(both.parent))
    extra = by_name(result)["lm_head.weight"]
    assert (extra.kind, extra.note) == ("extra", "tied to model.embed_tokens.weight, which both have")


def test_overlap_is_that_of_dense_masks() -> None:
    generator = np.random.default_rng(11)
    left = {name: generator.random((30, 20)) < 0.2 for name in ("a", "b")}
    right = {name: generator.random((30, 20)) < 0.1 for name in ("b", "c")}
    result = overlap(Region.from_masks(left), Region.from_masks(right))
    assert (result.only_left, result.only_right) == ({"a": left["a"].sum()}, {"c": right["c"].sum()})
    assert not result.identical
    whole = [{(name, *at) for name, mask in side.items() for at in np.argwhere(mask)} for side in (left, right)]
    assert result.total.jaccard == len(whole[0] & whole[1]) / len(whole[0] | whole[1])
    (item,) = result.tensors
    one, two = left["b"], right["b"]
    assert item.jaccard == (one & two).sum() / (one | two).sum()
    assert item.rows == pytest.approx(np.minimum(one.sum(1) / one.sum(), two.sum(1) / two.sum()).sum())
    assert item.columns == pytest.approx(np.minimum(one.sum(0) / one.sum(), two.sum(0) / two.sum()).sum())


def test_jaccard_by_chance_is_what_random_regions_reach() -> None:
    generator = np.random.default_rng(13)
    one, two = (Region.from_masks({"a": generator.random((600, 600)) < density}) for density in (0.3, 0.2))
    item = overlap(one, two).total
    assert item.jaccard == pytest.approx(item.by_chance, rel=0.02)


def test_arguments_that_make_no_pair(tmp_path: Path) -> None:
    region = tmp_path / "r.region.safetensors"
    Region.from_masks({"a": np.eye(4, dtype=np.bool_)}).save(region)
    model = write(tmp_path / "m" / "model.safetensors", random_tensors())
    with pytest.raises(InputError, match="two checkpoints"):
        compare(model, None)
    with pytest.raises(InputError, match="after --region"):
        compare(model, region)
    with pytest.raises(InputError, match="--save"):
        compare(region, region, save=tmp_path / "x")


def test_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anonymous memory of a comparison does not grow with the tensor (measured by numpy's own allocations)."""
    import tracemalloc

    monkeypatch.undo()
    peaks = []
    for size in (1 << 22, 1 << 24):
        array = np.zeros((size // 1024, 1024), np.uint8).view(ml_dtypes.float8_e5m2)
        left = Checkpoint.open(write(tmp_path / f"{size}a.safetensors", {"layers.0.mlp.up_proj.weight": array}))
        right = Checkpoint.open(write(tmp_path / f"{size}b.safetensors", {"layers.0.mlp.up_proj.weight": array}))
        del array
        tracemalloc.start()
        compare_checkpoints(left, right)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 80e6


def test_command_line(tmp_path: Path) -> None:
    before = random_tensors()
    left = write(tmp_path / "a" / "model.safetensors", before)
    right = write(tmp_path / "b" / "model.safetensors", poked(before))
    done = surgeon_forked("diff", left, right, "--json", "--exit-code")
    data = json.loads(done.stdout)
    assert done.returncode == 1
    assert data["tensor_counts"]["changed"] == 4
    assert math.isclose(data["total"]["l2"] ** 2, sum(tensor["l2"] ** 2 for tensor in data["tensors"]))
    assert surgeon_forked("diff", left, left, "--exit-code").returncode == 0
    assert surgeon_forked("diff", left, right).returncode == 0
    missing = surgeon_forked("diff", left, tmp_path / "nowhere")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: ")


def test_one_screen(tmp_path: Path) -> None:
    before = random_tensors()
    left = write(tmp_path / "a" / "model.safetensors", before)
    right = write(tmp_path / "b" / "model.safetensors", poked(before))
    lines = surgeon_forked("diff", left, right).stdout.splitlines()
    assert len(lines) <= 30
    changed = sum(int((array != poked(before)[name]).sum()) for name, array in before.items())
    assert f"entries  {changed:,} of " in "\n".join(lines)


def test_rows_and_columns_in_common_stand_beside_chance(tmp_path: Path) -> None:
    """Two random regions share what chance makes them share; two that crowd into the same rows far more."""
    generator = np.random.default_rng(0)
    strewn = [Region.from_masks({"a": generator.random((200, 300)) < 0.01}) for _ in range(2)]
    found = overlap(*strewn).total
    assert found.rows / found.rows_by_chance == pytest.approx(1, abs=0.15)
    assert found.columns / found.columns_by_chance == pytest.approx(1, abs=0.15)
    crowded = []
    for _ in range(2):
        mask = np.zeros((200, 300), dtype=np.bool_)
        mask[:4] = generator.random((4, 300)) < 0.4
        crowded.append(Region.from_masks({"a": mask}))
    found = overlap(*crowded).total
    assert found.rows > 0.9
    assert found.rows / found.rows_by_chance > 1.3
    assert found.columns / found.columns_by_chance == pytest.approx(1, abs=0.15)
