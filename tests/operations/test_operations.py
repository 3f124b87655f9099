"""Operations: exact in the tensor's own dtype, undone by their inverse, and the same in memory and on disk."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import ModelMaker
from hypothesis import given
from hypothesis import strategies as st

from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import InputError
from surgeon.operations import Fill, Noise, Operation, Restore, Scale, Shuffle, Target, Zero, rounded
from surgeon.operations.edits import Surgery
from surgeon.region.region import Region
from surgeon.region.select import select_random
from surgeon.write.staging import write_variant

NARROW = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)]
DTYPES = [*NARROW, np.dtype(np.float32)]


def grid(dtype: np.dtype[Any]) -> np.ndarray:
    """All finite values of a dtype of at most 16 bits, sorted."""
    carrier = np.uint16 if dtype.itemsize == 2 else np.uint8
    with np.errstate(invalid="ignore"):  # signalling not-a-numbers
        values = np.arange(1 << 8 * dtype.itemsize).astype(carrier).view(dtype).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


GRIDS = {dtype: grid(dtype) for dtype in NARROW}


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@given(data=st.data())
def test_rounding_is_to_the_nearest_value(dtype: np.dtype[Any], data: st.DataObject) -> None:
    """Against exact rational arithmetic over all values of the dtype, also just beside the middle of two."""
    values = GRIDS[dtype]
    at = data.draw(st.integers(0, len(values) - 2))
    low, high = float(values[at]), float(values[at + 1])
    middle = (low + high) / 2
    tiny = data.draw(st.sampled_from([0.0, 1e-9, -1e-9, 2**-40, -(2**-40)])) * (high - low)
    found = float(rounded(np.array([middle + tiny]), dtype)[0])
    exact = Fraction(middle + tiny)
    below, above = exact - Fraction(low), Fraction(high) - exact
    if below != above:
        assert found == (low if below < above else high)
    else:  # ties go to the even one of the two, whose last bit is zero
        assert found in (low, high)
        bits = np.array([found]).astype(dtype).view(np.uint16 if dtype.itemsize == 2 else np.uint8)
        assert int(bits[0]) % 2 == 0


def entries(dtype: np.dtype[Any], count: int = 200) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(count).astype(dtype)


def target(source: np.ndarray, indices: np.ndarray | None = None, name: str = "t") -> Target:
    return Target(name, np.arange(source.size) if indices is None else indices, source)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero(dtype: np.dtype[Any]) -> None:
    values = entries(dtype)
    found = Zero(zero="r").new_values(values, target(values))
    assert found.dtype == dtype
    assert not found.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("power", [-1, 1, 2])
def test_scaling_by_a_power_of_two_is_undone_by_its_inverse(dtype: np.dtype[Any], power: int) -> None:
    values = np.array([0.0, -0.0, 0.5, 1.0, -1.5, 3.0, 12.0]).astype(dtype)
    there = Scale(scale="r", by=2.0**power).new_values(values, target(values))
    back = Scale(scale="r", by=2.0**-power).new_values(there, target(values))
    assert back.dtype == dtype
    assert back.tobytes() == values.tobytes()


def test_scaling_is_what_torch_computes() -> None:
    values = entries(np.dtype(ml_dtypes.bfloat16))
    expected = (torch.from_numpy(values.astype(np.float64)) * 0.3).to(torch.float32).to(torch.bfloat16)
    found = Scale(scale="r", by=0.3).new_values(values, target(values))
    np.testing.assert_array_equal(found.astype(np.float32), expected.float().numpy())


def test_filling_with_a_constant_and_with_means() -> None:
    source = entries(np.dtype(np.float32), 24).reshape(2, 3, 4)
    chosen = np.array([0, 5, 6, 23])
    aim = target(source, chosen)
    values = source.reshape(-1)[chosen]
    assert Fill(fill="r", value=0.25).new_values(values, aim).tolist() == [0.25] * 4
    np.testing.assert_allclose(Fill(fill="r", mean="tensor").new_values(values, aim), source.mean(), rtol=1e-6)
    by_row = [math.fsum(source[i, j].tolist()) / 4 for i, j in ((0, 0), (0, 1), (0, 1), (1, 2))]
    np.testing.assert_allclose(Fill(fill="r", mean="row").new_values(values, aim), by_row, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_noise_is_relative_seeded_and_follows_the_tensor(dtype: np.dtype[Any]) -> None:
    values = np.ones(20_000).astype(dtype)
    noise = Noise(noise="r", relative=0.25, seed=3)
    one = noise.new_values(values, target(values))
    assert one.dtype == dtype
    assert one.tobytes() == noise.new_values(values, target(values)).tobytes()
    others = (
        noise.new_values(values, target(values, name="u")),
        noise.model_copy(update={"seed": 4}).new_values(values, target(values)),
    )
    assert all(one.tobytes() != other.tobytes() for other in others)
    assert one.astype(np.float64).mean() == pytest.approx(1, abs=0.02)
    assert one.astype(np.float64).std() == pytest.approx(0.25, rel=0.05)
    zeros = np.zeros(9, dtype)
    assert not noise.new_values(zeros, target(zeros)).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shuffling_keeps_every_bit_and_is_a_permutation(dtype: np.dtype[Any]) -> None:
    values = entries(dtype)
    found = Shuffle(shuffle="r", seed=1).new_values(values, target(values))
    carrier = f"u{dtype.itemsize}"
    assert found.tobytes() != values.tobytes()
    assert np.array_equal(np.sort(found.view(carrier)), np.sort(values.view(carrier)))
    order = Shuffle(shuffle="r", seed=1).new_values(np.arange(200), target(np.arange(200)))
    assert np.array_equal(found[np.argsort(order)], values)  # undone by the inverse permutation


def some_region(checkpoint: Checkpoint, seed: int = 1) -> Region:
    tensors = scope(checkpoint).tensors
    chosen = {info.name: select_random([(info.name, info.numel)], 0.1, seed)[info.name] for info in tensors}
    return Region.from_indices(chosen, {info.name: info.shape for info in tensors})


@pytest.mark.parametrize(
    "operation",
    [
        Scale(scale="r", by=3.0),
        Fill(fill="r", mean="row"),
        Noise(noise="r", relative=0.5),
        Shuffle(shuffle="r"),
        Fill(fill="r", value=-2.0),
    ],
    ids=lambda operation: operation.kind,
)
def test_whatever_was_done_restore_undoes(operation: Operation, make_model: ModelMaker, tmp_path: Path) -> None:
    base = Checkpoint.open(make_model("llama", dtype="bfloat16"))
    region = some_region(base)
    write_variant(base, [operation], {"r": region}, tmp_path / "changed")
    changed = Checkpoint.open(tmp_path / "changed")
    moved = 0
    for name in base.tensors:
        same = base.array(name).reshape(-1).view(np.uint16) == changed.array(name).reshape(-1).view(np.uint16)
        outside = np.ones(same.size, bool)
        outside[region.indices(name) if name in region else []] = False
        assert same[outside].all()
        moved += int((~same[~outside]).sum())
    assert moved > 0.8 * region.entries
    restore = Restore.model_validate({"restore": "r", "from": str(base.folder)})
    write_variant(changed, [restore], {"r": region}, tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (base.folder / "model.safetensors").read_bytes()


def test_restore_takes_another_dtype_rounded_once(make_model: ModelMaker) -> None:
    narrow, wide = (Checkpoint.open(make_model("llama", dtype=dtype)) for dtype in ("bfloat16", "float32"))
    region = some_region(narrow)
    restore = Restore.model_validate({"restore": "r", "from": str(wide.folder)})
    name = next(iter(region))
    edit = Surgery(narrow, [restore], {"r": region}).edit(name)
    expected = wide.tensor(name).flatten()[torch.from_numpy(edit.indices)].to(torch.bfloat16)
    assert np.array_equal(edit.values.astype(np.float32), expected.float().numpy())


def test_operations_follow_each_other(llama: Path) -> None:
    checkpoint = Checkpoint.open(llama)
    one, two = some_region(checkpoint), some_region(checkpoint, 2)
    steps: list[Operation] = [Scale(scale="one", by=2.0), Fill(fill="two", value=1.0), Scale(scale="one", by=0.5)]
    for name in one:
        edit = Surgery(checkpoint, steps, {"one": one, "two": two}).edit(name)
        expected = checkpoint.array(name).reshape(-1).copy()
        expected[two.indices(name)] = 1.0
        expected[np.intersect1d(one.indices(name), two.indices(name))] = 0.5
        assert np.array_equal(edit.values, expected[edit.indices])


def test_values_that_outgrow_the_dtype_are_refused(make_model: ModelMaker) -> None:
    checkpoint = Checkpoint.open(make_model("llama", dtype="float16"))
    region = some_region(checkpoint)
    with pytest.raises(InputError, match=r"'scale r' makes \d+ entries of tensor '.*' too large for its dtype float16"):
        Surgery(checkpoint, [Scale(scale="r", by=1e9)], {"r": region}).edit(next(iter(region)))


def test_integers_are_rounded_and_what_does_not_fit_is_refused() -> None:
    values = np.array([10, -10, 3, 5, 127, -128], np.int8)
    halved = Scale(scale="r", by=0.5).new_values(values, target(values))
    assert halved.dtype == np.int8
    assert halved.tolist() == [5, -5, 2, 2, 64, -64]  # 1.5, 2.5 and 63.5 go to the even neighbour
    assert Scale(scale="r", by=0.99).new_values(values, target(values)).tolist() == [10, -10, 3, 5, 126, -127]
    with pytest.raises(InputError, match="129 lies outside of the range of int8"):
        Fill(fill="r", value=129.0).new_values(values, target(values))
    for value in (128.0, -129.0, math.nan):
        with pytest.raises(InputError, match="outside of the range"):
            rounded(np.array([value]), np.dtype(np.int8))
    assert rounded(np.array([-(2.0**63)]), np.dtype(np.int64)).tolist() == [-(2**63)]
    with pytest.raises(InputError, match="outside of the range of int64"):
        rounded(np.array([2.0**63]), np.dtype(np.int64))
