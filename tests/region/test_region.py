"""Regions: algebra against numpy booleans, encodings against their definition, files byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from surgeon.errors import RegionError
from surgeon.region.mask import encode_indices, encode_mask
from surgeon.region.region import Region

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=1, max_dims=3, max_side=9))
pairs = hnp.array_shapes(min_dims=1, max_dims=2, max_side=30).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)


@given(masks)
def test_any_mask_survives_encoding(mask: np.ndarray) -> None:
    encoded = encode_mask(mask)
    assert np.array_equal(encoded.dense(), mask)
    assert np.array_equal(encoded.indices(), np.flatnonzero(mask))
    assert encoded.entries == mask.sum()


@given(st.sets(st.integers(0, 5000), max_size=60))
def test_sparse_indices_survive_encoding_by_gaps(chosen: set[int]) -> None:
    indices = np.array(sorted(chosen), dtype=np.int64)
    encoded = encode_indices(indices, (5001,))
    assert encoded.encoding == "gaps"
    assert np.array_equal(encoded.indices(), indices)


def test_gaps_are_the_documented_bytes() -> None:
    indices = np.array([0, 3, 257, 257 + 255, 257 + 255 + 511])
    # 0; +3; +254; +255 = one skip and 0; +511 = two skips and 1
    assert encode_indices(indices, (10_000,)).data.tolist() == [0, 3, 254, 255, 0, 255, 255, 1]


def test_dense_masks_are_packed_as_bits() -> None:
    mask = np.array([True, False, True, True, False, True, True, True, True])
    encoded = encode_mask(mask)
    assert (encoded.encoding, encoded.data.tolist()) == ("bits", [0b10110111, 0b10000000])


def test_gaps_take_less_than_nine_hundredths_of_a_bit_at_one_percent() -> None:
    mask = np.random.default_rng(0).random(1_000_000) < 0.01
    assert encode_mask(mask).data.size * 8 / mask.size < 0.09


@given(pairs)
def test_algebra_is_that_of_boolean_arrays(pair: tuple[np.ndarray, np.ndarray]) -> None:
    left, right = (Region.from_masks({"t": mask}) for mask in pair)
    a, b = pair
    assert np.array_equal((left & right).mask("t"), a & b)
    assert np.array_equal((left | right).mask("t"), a | b)
    assert np.array_equal((left - right).mask("t"), a & ~b)
    assert np.array_equal((~left).mask("t"), ~a)
    union = np.count_nonzero(a | b)
    assert left.jaccard(right) == (np.count_nonzero(a & b) / union if union else 1.0)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_hits_are_row_and_column_sums(mask: np.ndarray) -> None:
    rows, columns = Region.from_masks({"t": mask}).hits("t")
    assert rows.tolist() == mask.sum(axis=1).tolist()
    assert columns.tolist() == mask.sum(axis=0).tolist()


def test_algebra_over_different_tensors() -> None:
    one, two = np.array([True, False]), np.array([True, True])
    left, right = Region.from_masks({"a": one, "b": one}), Region.from_masks({"b": two, "c": two})
    assert list(left & right) == ["b"]
    assert list(left | right) == ["a", "b", "c"]
    assert list(left - right) == ["a", "b"]
    assert (left | right).entries == 1 + 2 + 2
    with pytest.raises(RegionError, match="different models"):
        left & Region.from_masks({"a": np.ones(3, bool)})


def test_a_region_file_survives_and_others_can_read_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    content = {
        "dense": generator.random((7, 9)) < 0.5,
        "sparse": generator.random((40, 50)) < 0.01,
        "none": np.zeros(3, bool),
    }
    path = tmp_path / "r.region.safetensors"
    Region.from_masks(content, {"model": "x"}).save(path)
    loaded = Region.load(path)
    assert loaded.metadata == {"model": "x"}
    assert loaded == Region.from_masks(content)
    # The reader that docs/region-format.md promises, on what plain safetensors returns.
    table = json.loads(_metadata(path)["tensors"])
    for name, data in load_file(path).items():
        numel = int(np.prod(table[name]["shape"]))
        if table[name]["encoding"] == "gaps":
            flat = np.zeros(numel, bool)
            flat[np.cumsum(data, dtype=np.int64)[data != 255]] = True
        else:
            flat = np.unpackbits(data, count=numel).astype(bool)
        assert np.array_equal(flat.reshape(table[name]["shape"]), content[name])


def test_a_region_file_is_pinned_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "r.region.safetensors"
    Region.from_indices({"w": np.array([1, 300])}, {"w": (20, 20)}, {"seed": 3}).save(path)
    header = (
        b'{"__metadata__":{"format":"surgeon-region","format_version":"1","polarity":"selected",'
        b'"provenance":"{\\"seed\\": 3}",'
        b'"tensors":"{\\"w\\": {\\"encoding\\": \\"gaps\\", \\"entries\\": 2, \\"shape\\": [20, 20]}}"},'
        b'"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    )
    header += b" " * (-len(header) % 8)
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + bytes([1, 255, 44])


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return file.metadata()


def test_files_that_are_no_regions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(RegionError, match="no such file"):
        Region.load(path)
    save_file({"x": np.zeros(2, np.uint8)}, path)
    with pytest.raises(RegionError, match="not a region"):
        Region.load(path)
    save_file({"x": np.zeros(2, np.uint8)}, path, {"format": "surgeon-region", "format_version": "9"})
    with pytest.raises(RegionError, match="upgrade surgeon"):
        Region.load(path)


def test_a_damaged_mask_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "r.region.safetensors"
    Region.from_indices({"w": np.array([5, 9])}, {"w": (100,)}).save(path)
    content = bytearray(path.read_bytes())
    content[-1] = 200  # the last gap now points past the end
    path.write_bytes(bytes(content))
    with pytest.raises(RegionError, match="'w' is damaged"):
        Region.load(path).indices("w")


@pytest.mark.parametrize("indices", [[3, 3], [4, 2], [-1, 2], [99, 100]])
def test_indices_must_be_sorted_distinct_and_inside(indices: list[int]) -> None:
    with pytest.raises(RegionError, match="sorted, distinct"):
        Region.from_indices({"w": np.array(indices)}, {"w": (10, 10)})
