"""`add` and `slerp` against exact rational arithmetic and the defining equations; bits that need not change do not."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import ModelMaker
from pydantic import ValidationError

import surgeon
from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import InputError, RecipeError
from surgeon.operations import Add, Operation, Restore, Slerp, rounded
from surgeon.operations.edits import Surgery
from surgeon.recipe.schema import VariantSpec
from surgeon.region.region import Region
from surgeon.region.select import select_random
from surgeon.write.staging import write_variant


def made(operation: dict[str, Any]) -> Operation:
    """An operation as a recipe gives it."""
    return VariantSpec.model_validate({"operations": [operation]}).operations[0]


def some_region(checkpoint: Checkpoint, seed: int, share: float = 0.2) -> Region:
    tensors = scope(checkpoint).tensors
    chosen = {info.name: select_random([(info.name, info.numel)], share, seed)[info.name] for info in tensors}
    return Region.from_indices(chosen, {info.name: info.shape for info in tensors})


@pytest.fixture(scope="module")
def models(make_model: ModelMaker) -> list[Path]:
    """A base and two others, in bfloat16."""
    return [make_model("llama", dtype="bfloat16", seed=seed) for seed in (0, 1, 2)]


def exact(name: str, models: list[Path], donors: list[set[int]], base: int, factor: Fraction) -> list[float]:
    """theta + factor * mean(other - base), entry by entry, in rational numbers, rounded once."""
    arrays = [Checkpoint.open(model).array(name).reshape(-1).astype(np.float64).tolist() for model in models]
    result = []
    for i, theta in enumerate(arrays[0]):
        here = [donor for donor, entries in enumerate(donors, 1) if i in entries]
        change = sum((Fraction(arrays[d][i]) - Fraction(arrays[base][i]) for d in here), Fraction(0))
        mean = change / len(here) if here else Fraction(0)
        result.append(float(Fraction(theta) + factor * mean))
    return rounded(np.array(result), np.dtype(ml_dtypes.bfloat16)).astype(np.float32).tolist()  # type: ignore[no-any-return]


def test_each_donor_in_its_own_region_and_the_mean_where_they_overlap(models: list[Path]) -> None:
    checkpoint = Checkpoint.open(models[0])
    regions = {"one": some_region(checkpoint, 1), "two": some_region(checkpoint, 2)}
    operation = made({"add": ["one", "two"], "from": [str(models[1]), str(models[2])], "factor": 0.5})
    overlapping = 0
    for name in regions["one"]:
        edit = Surgery(checkpoint, [operation], regions).edit(name)
        sets = [set(region.indices(name).tolist()) for region in regions.values()]
        overlapping += len(sets[0] & sets[1])
        assert set(edit.indices.tolist()) == sets[0] | sets[1]
        expected = exact(name, models, sets, 0, Fraction(1, 2))
        assert edit.values.astype(np.float32).tolist() == [expected[i] for i in edit.indices]
    assert overlapping > 100


def test_several_donors_in_one_region_and_another_base(models: list[Path]) -> None:
    checkpoint = Checkpoint.open(models[0])
    region = some_region(checkpoint, 3)
    operation = made({"add": "r", "from": [str(models[1])], "base": str(models[2]), "factor": -2.0})
    for name in region:
        entries = set(region.indices(name).tolist())
        edit = Surgery(checkpoint, [operation], {"r": region}).edit(name)
        expected = exact(name, models, [entries], 2, Fraction(-2))
        assert edit.values.astype(np.float32).tolist() == [expected[i] for i in edit.indices]


def test_one_donor_added_whole_is_that_donor(models: list[Path]) -> None:
    """theta + (other - theta): what `restore` takes, bit for bit, from one that has no negative zeros."""
    checkpoint = Checkpoint.open(models[0])
    region = some_region(checkpoint, 4)
    for name in region:
        added = Surgery(checkpoint, [made({"add": "r", "from": str(models[1])})], {"r": region}).edit(name)
        taken = Surgery(checkpoint, [made({"restore": "r", "from": str(models[1])})], {"r": region}).edit(name)
        assert added.values.tobytes() == taken.values.tobytes()


def test_what_a_donor_did_not_change_keeps_its_bits(models: list[Path], tmp_path: Path) -> None:
    """Also a negative zero, which a sum with zero would turn; and a denormal."""
    checkpoint = Checkpoint.open(models[0])
    name = "model.layers.0.mlp.down_proj.weight"
    at = np.arange(6)
    small = Region.from_indices({name: at}, {name: checkpoint.tensors[name].shape})
    values = np.array([0.0, -0.0, 1e-40, -1e-40, 3.0, -5.0]).astype(ml_dtypes.bfloat16)

    class Put(Restore):
        def new_values(self, _: Any, target: Any) -> Any:
            return values

    write_variant(
        checkpoint, [Put.model_validate({"restore": "r", "from": str(models[0])})], {"r": small}, tmp_path / "m"
    )
    there = Checkpoint.open(tmp_path / "m")
    for operation in (
        made({"add": "r", "from": str(tmp_path / "m"), "factor": 3.0}),
        made({"add": ["r", "r"], "from": [str(models[1]), str(models[2])], "factor": 0.0}),
    ):
        edit = Surgery(there, [operation], {"r": small}).edit(name)
        assert edit.values.tobytes() == values.tobytes()
        assert edit.count().changed == 0


def test_a_sum_too_large_is_refused(make_model: ModelMaker) -> None:
    one, two = (make_model("llama", dtype="float16", seed=seed) for seed in (0, 1))
    checkpoint = Checkpoint.open(one)
    region = some_region(checkpoint, 1)
    surgery = Surgery(checkpoint, [made({"add": "r", "from": str(two), "factor": 1e9})], {"r": region})
    with pytest.raises(InputError, match=r"'add r' makes entries of tensor '.*' too large for its dtype float16"):
        surgery.edit(next(iter(region)))


def test_slerp_is_on_the_arc(models: list[Path]) -> None:
    """As the definition demands: the angle to both ends is in proportion, and the length is between theirs."""
    checkpoint, other = Checkpoint.open(models[0]), Checkpoint.open(models[1])
    region = some_region(checkpoint, 5, 0.5)
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        at = region.indices(name)
        here, there = (c.array(name).reshape(-1)[at].astype(np.float64) for c in (checkpoint, other))

        def angle(a: np.ndarray, b: np.ndarray) -> float:
            return math.acos(math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b)))

        whole = angle(here, there)
        for t in (0.25, 0.5, 0.9):
            edit = Surgery(
                checkpoint, [made({"slerp": "r", "from": str(models[1]), "fraction": t})], {"r": region}
            ).edit(name)
            found = edit.values.astype(np.float64)
            plain = [
                (math.sin((1 - t) * whole) * a + math.sin(t * whole) * b) / math.sin(whole)
                for a, b in zip(here, there, strict=True)
            ]
            np.testing.assert_array_max_ulp(found.astype(np.float32), np.array(plain, np.float32), maxulp=2**16)
            assert angle(here, np.array(plain)) + angle(np.array(plain), there) == pytest.approx(whole, abs=0.05)
        ends = [
            Surgery(checkpoint, [made({"slerp": "r", "from": str(models[1]), "fraction": t})], {"r": region}).edit(name)
            for t in (0.0, 1.0)
        ]
        assert ends[0].count().changed == 0
        assert np.array_equal(ends[1].values.astype(np.float64), there)


def test_slerp_takes_the_chord_where_there_is_no_arc(models: list[Path]) -> None:
    checkpoint = Checkpoint.open(models[0])
    region = some_region(checkpoint, 6)
    name = next(iter(region))
    same = Surgery(checkpoint, [made({"slerp": "r", "from": str(models[0])})], {"r": region}).edit(name)
    assert same.count().changed == 0


def test_the_same_on_disk_and_in_a_recipe(models: list[Path], texts: dict[str, str], tmp_path: Path) -> None:
    """Several regions of one operation, from YAML to the checkpoint; the marker names both donors and their hashes."""
    path = tmp_path / "r.yaml"
    path.write_text(f"""\
version: 1
name: r
model: {models[0]}
corpus: {{de: {texts["de"]}}}
regions:
  one: {{score: {{kind: delta, other: {models[1]}}}, select: {{top: 0.1}}}}
  two: {{score: {{kind: delta, other: {models[2]}}}, select: {{top: 0.1}}}}
variants:
  both: {{operations: [{{add: [one, two], from: [{models[1]}, {models[2]}]}}]}}
  swept:
    operations: [{{add: [one, two], from: [{models[1]}, {models[2]}]}}]
    sweep: {{share: {{set: regions.two.select.top, to: [0.2, 0.3]}}}}
verify: {{languages: [de], tokens: 32}}
output: {tmp_path / "out"}
""")
    planned = surgeon.plan_recipe(path).variants
    assert list(planned["both"].operations) == ["add one", "add two"]
    assert list(planned["swept-0.2"].operations) == ["add one", "add two-0.2"]
    sizes = [planned[name].entries_at_most for name in ("both", "swept-0.2", "swept-0.3")]
    assert sizes[0] < sizes[1] < sizes[2]
    alone = path.read_text().partition("  swept:")[0] + f"output: {tmp_path / 'out'}\n"
    path.write_text(alone)
    surgeon.apply(path)
    checkpoint, written = Checkpoint.open(models[0]), Checkpoint.open(tmp_path / "out" / "variants" / "both")
    regions = {
        name: Region.load(tmp_path / "out" / "regions" / f"{name}.region.safetensors") for name in ("one", "two")
    }
    for name in checkpoint.tensors:
        expected = checkpoint.array(name).reshape(-1).astype(np.float32)
        if name in regions["one"]:
            sets = [set(region.indices(name).tolist()) for region in regions.values()]
            expected = np.array(exact(name, models, sets, 0, Fraction(1)), np.float32)
        assert np.array_equal(written.array(name).reshape(-1).astype(np.float32), expected), name
    marker = (tmp_path / "out" / "variants" / "both" / "surgeon.json").read_text()
    assert all(str(model) in marker for model in models[1:])


def test_what_does_not_fit_is_said(models: list[Path], make_model: ModelMaker, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="3 regions and 2 models: give one region for all, or one each"):
        Add.model_validate({"add": ["a", "b", "c"], "from": ["x", "y"]})
    with pytest.raises(ValidationError):
        Slerp.model_validate({"slerp": "a", "from": "x", "fraction": 1.5})
    wider = make_model("llama", intermediate_size=64)
    path = tmp_path / "r.yaml"
    path.write_text(f"""\
version: 1
name: r
model: {models[0]}
regions:
  one: {{select: {{random: 0.1}}}}
variants:
  a: {{operations: [{{add: [one, nowhere], from: [{models[1]}, {models[2]}]}}], write: false}}
output: {tmp_path / "out"}
""")
    with pytest.raises(RecipeError, match=r"r.yaml:7: no region 'nowhere'"):
        surgeon.plan_recipe(path)
    path.write_text(path.read_text().replace("nowhere", "one").replace(str(models[2]), str(wider)))
    with pytest.raises(RecipeError, match=r"r.yaml:7: .*cannot be taken from .*same architecture"):
        surgeon.plan_recipe(path)
