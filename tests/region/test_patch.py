"""Sparse patches: what they carry, byte by byte, and that replaying one gives the second checkpoint again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml
from forking import surgeon_forked
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load_file

import surgeon
import surgeon.diff.entries as diff_module
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import NUMPY_DTYPES, header_bytes
from surgeon.diff.comparison import compare
from surgeon.errors import CheckpointError, InputError, RecipeError, RegionError
from surgeon.operations import Restore
from surgeon.operations.edits import check_patch_base
from surgeon.region.patch import Patch
from surgeon.region.region import Region
from surgeon.write.staging import write_variant

ROOT = Path(__file__).parents[2]
NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
DOWN, UP = "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"


def save(folder: Path, tensors: dict[str, NDArray[Any]], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    specs = [(name, NAMES[array.dtype], array.shape) for name, array in tensors.items()]
    data = b"".join(array.tobytes() for array in tensors.values())
    (folder / "model.safetensors").write_bytes(header_bytes(specs, {"format": "pt"}) + data)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    return folder


def replay_recipe(tmp_path: Path, base: Path, patch: Path, **changes: Any) -> Path:
    recipe = {
        "version": 1,
        "name": "replay",
        "model": str(base),
        "regions": {"changed": {"file": str(patch)}},
        "variants": {"again": {"operations": [{"restore": "changed", "from": str(patch)}]}},
        "output": str(tmp_path / "replayed"),
        **changes,
    }
    path = tmp_path / "replay.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def replayed(tmp_path: Path, base: Path, patch: Path) -> Checkpoint:
    surgeon.apply(replay_recipe(tmp_path, base, patch))
    return Checkpoint.open(tmp_path / "replayed" / "variants" / "again")


DTYPES = st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])


@st.composite
def two_checkpoints(draw: st.DrawFn) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Tensors of any bits, not-a-numbers and signed zeros included, and others of the same shapes and dtypes."""
    before, after = {}, {}
    for name in draw(st.lists(st.sampled_from([DOWN, UP, "model.norm.weight"]), min_size=1, unique=True)):
        dtype = np.dtype(draw(DTYPES))
        shape = draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=12))
        words = hnp.arrays(np.dtype(f"u{dtype.itemsize}"), shape)
        old = draw(words)
        new = np.where(draw(hnp.arrays(np.bool_, shape)), draw(words), old)
        before[name], after[name] = old.view(dtype), new.view(dtype)
    return before, after


@given(pair=two_checkpoints(), piece=st.sampled_from([8, 64, 1 << 20]))
def test_a_patch_replayed_on_its_base_gives_the_second_checkpoint_bit_by_bit(
    pair: Any, piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before, after = pair
    tmp_path = tmp_path_factory.mktemp("p")
    left, right = save(tmp_path / "a", before), save(tmp_path / "b", after)
    path = tmp_path / "x.patch.safetensors"
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(diff_module, "CHUNK", piece)
        differ = any(before[name].tobytes() != after[name].tobytes() for name in before)
        if not differ:
            with pytest.raises(RegionError, match="no entry differs"):
                compare(left, right, save_patch=path)
            return
        compare(left, right, save_patch=path)
    base, patch = Checkpoint.open(left), Patch.load(path)
    check_patch_base(base, patch, patch.region, {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in before.items()})
    operation = Restore.model_validate({"restore": "changed", "from": str(path)})
    again = Checkpoint.open(write_variant(base, [operation], {"changed": patch.region}, tmp_path / "again").path)
    for name in after:
        assert again.array(name).dtype == after[name].dtype
        assert again.array(name).tobytes() == after[name].tobytes()


def test_payloads_of_not_a_numbers_and_signs_of_zeros_are_carried(tmp_path: Path) -> None:
    before = np.array([0x00000000, 0x3F800000, 0x7FC00000, 0x7FC00000], np.uint32).view(np.float32)
    after = np.array([0x80000000, 0x3F800000, 0x7FC00123, 0x7FC00000], np.uint32).view(np.float32)
    left, right = save(tmp_path / "a", {UP: before}), save(tmp_path / "b", {UP: after})
    path = tmp_path / "x.patch.safetensors"
    compare(left, right, save_patch=path)
    patch = Patch.load(path)
    assert patch.region.indices(UP).tolist() == [0, 2]
    assert patch.values(UP).view(np.uint32).tolist() == [0x80000000, 0x7FC00123]
    assert replayed(tmp_path, left, path).array(UP).tobytes() == after.tobytes()


def test_a_patch_is_pinned_byte_by_byte(tmp_path: Path) -> None:
    before = {
        "b": np.zeros(3, np.float16),
        "a": np.arange(400, dtype=np.float32).reshape(20, 20),
        "same": np.ones(2, np.float32),
    }
    after = {name: array.copy() for name, array in before.items()}
    after["b"][:] = [0.0, 1.0, -2.0]
    after["a"].reshape(-1)[[1, 300]] = [-1.0, 0.5]
    path = tmp_path / "x.patch.safetensors"
    left, right = save(tmp_path / "a", before), save(tmp_path / "b", after)
    compare(left, right, save_patch=path)
    hashes = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in before.items()}
    table = (
        '{"a": {"encoding": "gaps", "entries": 2, "shape": [20, 20], "base_sha256": "' + hashes["a"] + '"}, '
        '"b": {"encoding": "bits", "entries": 2, "shape": [3], "base_sha256": "' + hashes["b"] + '"}}'
    )
    provenance = (
        f'{{"changed_to": {{"model": "{right}", "revision": null}}, "model": "{left}", "model_type": "llama", '
        '"revision": null}'
    )
    header = (
        '{"__metadata__":{"format":"surgeon-patch","format_version":"1","polarity":"selected",'
        f'"provenance":{json.dumps(provenance)},"tensors":{json.dumps(table)}}},'
        '"values/a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"values/b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},'
        '"a":{"dtype":"U8","shape":[3],"data_offsets":[12,15]},'
        '"b":{"dtype":"U8","shape":[1],"data_offsets":[15,16]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    data = bytes.fromhex("000080bf0000003f003c00c0") + bytes([1, 255, 44]) + bytes([0b01100000])
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + data


def test_the_documented_reader_reads_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    before = {name: generator.normal(size=(30, 20)).astype(np.float32) for name in (DOWN, UP)}
    after = {DOWN: before[DOWN] * (generator.random((30, 20)) < 0.98), UP: before[UP] + 1}
    path = tmp_path / "x.patch.safetensors"
    compare(save(tmp_path / "a", before), save(tmp_path / "b", after), save_patch=path)
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "patch-format.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(source, "patch-format.md", "exec"), names)
    found = {name: array.copy() for name, array in before.items()}
    for name, indices, values in names["read_patch"](path):
        found[name].reshape(-1)[indices] = values
    for name in after:
        assert found[name].tobytes() == after[name].tobytes()


def test_the_documented_recipe_replays_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "patch-format.md").read_text()
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"```console\n\$ surgeon (.*?)\n```", page, re.DOTALL)
    save(tmp_path / "A", {UP: np.ones(8, np.float32)})
    save(tmp_path / "B", {UP: np.arange(8, dtype=np.float32)})
    Path("r.yaml").write_text(recipe)
    assert surgeon_forked(*command.split()).returncode == 0
    assert surgeon_forked("apply", "r.yaml").returncode == 0
    assert Checkpoint.open("out/replay/variants/again").array(UP).tolist() == list(range(8))


def test_what_a_patch_cannot_carry_is_said(tmp_path: Path) -> None:
    ones = np.ones((4, 4), np.float32)
    before = {UP: ones, "gone": ones, "turned": np.zeros((2, 3), np.float32), "cast": ones}
    after = {UP: ones * 2, "new": ones[:1], "turned": np.ones((3, 2), np.float32), "cast": ones.astype(np.float16)}
    path = tmp_path / "x.patch.safetensors"
    left, right = save(tmp_path / "a", before), save(tmp_path / "b", after)
    done = surgeon_forked("diff", left, right, "--save-patch", path)
    assert done.returncode == 0, done.stderr
    assert "left out, since a patch cannot carry it: 'cast (retyped)', 'gone (missing)'" in done.stdout
    assert Patch.load(path).left_out == {
        "gone": "missing", "new": "extra", "turned": "reshaped", "cast": "retyped",
    }  # fmt: skip
    data = json.loads(surgeon_forked("diff", left, right, "--save-patch", path, "--json").stdout)
    assert data["patch"] == {"path": str(path), "tensors": 1, "entries": 16, "left_out": Patch.load(path).left_out}
    found = json.loads(surgeon_forked("inspect", path, "--json").stdout)
    assert (found["kind"], found["entries"], found["dtypes"]) == ("patch", 16, {"F32": 1})
    assert "gone (missing)" in surgeon_forked("inspect", path).stdout
    with pytest.raises(
        RegionError, match=r"not written. What differs are tensors that a patch cannot carry \(missing\): .*gone"
    ):
        compare(save(tmp_path / "c", {UP: ones, "gone": ones}), save(tmp_path / "d", {UP: ones}), save_patch=path)


def test_another_base_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    ones = np.ones((4, 4), np.float32)
    path = tmp_path / "x.patch.safetensors"
    other = ones.copy()
    other[3, 3] = 5  # an entry that the patch does not touch
    left = save(tmp_path / "a", {UP: ones})
    compare(left, save(tmp_path / "b", {UP: np.where(np.eye(4) > 0, 0, other).astype(np.float32)}), save_patch=path)
    base = save(tmp_path / "c", {UP: other})
    with pytest.raises(CheckpointError, match=f"was made for another base: tensor '{UP}'"):
        replayed(tmp_path, base, path)
    assert not (tmp_path / "replayed" / "variants").exists()
    for name, tensors in {
        "dtype": {UP: ones.astype(np.float16)},
        "shape": {UP: np.ones((2, 8), np.float32)},
        "name": {DOWN: ones},
    }.items():
        with pytest.raises(RecipeError, match=r"another checkpoint|another model|has not"):
            surgeon.plan_recipe(replay_recipe(tmp_path, save(tmp_path / name, tensors), path))


def test_entries_that_the_patch_does_not_carry_are_refused(tmp_path: Path) -> None:
    ones = np.ones((4, 4), np.float32)
    path, region = tmp_path / "x.patch.safetensors", tmp_path / "r.region.safetensors"
    left = save(tmp_path / "a", {UP: ones})
    compare(left, save(tmp_path / "b", {UP: ones - np.eye(4, dtype=np.float32)}), save_patch=path)
    Region.from_masks({UP: np.ones((4, 4), np.bool_)}).save(region)
    recipe = replay_recipe(tmp_path, left, path, regions={"changed": {"file": str(region)}})
    with pytest.raises(RegionError, match="carries 4 entries of tensor"):
        surgeon.apply(recipe)
    Region.from_indices({UP: np.array([5])}, {UP: (4, 4)}).save(region)
    surgeon.apply(recipe)
    found = Checkpoint.open(tmp_path / "replayed" / "variants" / "again").array(UP)
    assert np.argwhere(found == 0).tolist() == [[1, 1]]


def test_tied_copies_that_differ_are_refused(tmp_path: Path) -> None:
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    ones = np.ones((4, 4), np.float32)
    tied = {"tie_word_embeddings": True}
    path = tmp_path / "x.patch.safetensors"
    left = save(tmp_path / "a", {embed: ones, head: ones}, tied)
    compare(left, save(tmp_path / "b", {embed: ones * 2, head: ones * 2}, tied), save_patch=path)
    again = replayed(tmp_path, left, path)
    assert again.array(embed).tolist() == again.array(head).tolist() == (ones * 2).tolist()
    for other in (ones, ones * 3):
        compare(left, save(tmp_path / "c", {embed: ones * 2, head: other}, tied), save_patch=path)
        with pytest.raises(CheckpointError, match="ties to it"):
            surgeon.apply(replay_recipe(tmp_path, left, path))


def test_damaged_patches_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.patch.safetensors"
    ones = np.ones((4, 4), np.float32)
    compare(save(tmp_path / "a", {UP: ones}), save(tmp_path / "b", {UP: ones * 2}), save_patch=path)
    path.write_bytes(path.read_bytes().replace(b'\\"entries\\": 16', b'\\"entries\\": 15'))
    with pytest.raises(RegionError, match="damaged patch"):
        Patch.load(path)
    region = tmp_path / "r.region.safetensors"
    Region.from_masks({UP: ones > 0}).save(region)
    with pytest.raises(RegionError, match="a region without values"):
        Patch.load(region)


def test_a_variant_written_as_a_patch_is_the_difference_of_the_written_one(
    recipe: Callable[..., Path], llama: Path, tmp_path: Path
) -> None:
    spec = "  cut: {operations: [{zero: core}]}\n"
    both = spec + "  sparse: {operations: [{zero: core}, {scale: random, by: 3.0}], write: patch}\n"
    both += "  whole: {operations: [{zero: core}, {scale: random, by: 3.0}]}\n"
    report = surgeon.apply(recipe(**{spec: both}))
    out = tmp_path / "out" / "variants"
    assert sorted(path.name for path in out.iterdir()) == ["cut", "sparse.patch.safetensors", "whole"]
    compare(llama, out / "whole", save_patch=tmp_path / "y.patch.safetensors")
    one, two = load_file(out / "sparse.patch.safetensors"), load_file(tmp_path / "y.patch.safetensors")
    assert {name: array.tobytes() for name, array in one.items()} == {n: a.tobytes() for n, a in two.items()}
    sparse = report.variants["sparse"]
    assert (sparse.written, sparse.bytes) == (True, (out / "sparse.patch.safetensors").stat().st_size)
    assert sparse.entries == report.variants["whole"].entries
    made = surgeon.plan_recipe(recipe(**{spec: both})).variants["sparse"]
    assert sparse.bytes <= made.bytes_to_write + 10_000  # the header
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "variants/sparse.patch.safetensors" in manifest["outputs"]
    again = replayed(tmp_path, llama, out / "sparse.patch.safetensors")
    assert (again.folder / "model.safetensors").read_bytes() == (out / "whole" / "model.safetensors").read_bytes()
    assert {str(path) for path in tmp_path.rglob("*.part")} == set()


def test_freeze_does_not_go_with_a_patch(recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="does not go with `write: patch`"):
        surgeon.plan_recipe(recipe(**{"{operations: [{zero: core}]}": "{freeze: core, write: patch}"}))


def test_two_regions_have_no_patch(tmp_path: Path) -> None:
    path = tmp_path / "r.region.safetensors"
    Region.from_masks({UP: np.eye(4) > 0}).save(path)
    with pytest.raises(InputError, match="--save-patch writes what differs between two checkpoints"):
        compare(path, path, save_patch=tmp_path / "x")


def test_memory_of_writing_a_patch_stays_flat(tmp_path: Path) -> None:
    """A dense patch of a tensor four times as large takes as much memory, but for a bit per entry."""
    import tracemalloc

    peaks = []
    for rows in (1 << 12, 1 << 14):
        before = np.zeros((rows, 1024), np.uint8).view(ml_dtypes.float8_e5m2)
        left = save(tmp_path / f"{rows}a", {UP: before})
        right = save(tmp_path / f"{rows}b", {UP: (before.view(np.uint8) + 1).view(ml_dtypes.float8_e5m2)})
        del before
        tracemalloc.start()
        compare(left, right, save_patch=tmp_path / "x.patch.safetensors")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2 * (1 << 24) / 8 + 1e6 < 90e6
