"""Reading and writing single safetensors files, held against the reference library and raw bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from surgeon.checkpoint import storage
from surgeon.checkpoint.storage import (
    DTYPE_BITS,
    NUMPY_DTYPES,
    header_bytes,
    map_bytes,
    read_header,
    read_pieces,
    view,
    write_stream,
)
from surgeon.checkpoint.torch_files import as_tensor
from surgeon.errors import CheckpointError
from surgeon.inside import replacing

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def raw_file(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", sorted(NUMPY_DTYPES))
def test_every_dtype_reads_as_the_reference_library_reads_it(dtype: str, tmp_path: Path) -> None:
    words = torch.arange(48, dtype=torch.uint8) % (2 if dtype == "BOOL" else 119)
    expected = words.view(TORCH_DTYPES[dtype]).reshape(2, -1)
    try:
        save_file({"x": expected}, tmp_path / "x.safetensors")
    except KeyError:  # a dtype that this release of the torch bindings cannot write
        raw_file(tmp_path / "x.safetensors", {"x": entry(dtype, list(expected.shape), 0, 48)}, bytes(words.tolist()))
    header = read_header(tmp_path / "x.safetensors")
    found = as_tensor(view(map_bytes(header.path, "private"), header.tensors["x"]))
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_packed_dtypes_pass_the_header_check_but_give_no_view(dtype: str, tmp_path: Path) -> None:
    path = raw_file(
        tmp_path / "x.safetensors", {"x": entry(dtype, [8], 0, DTYPE_BITS[dtype])}, bytes(DTYPE_BITS[dtype])
    )
    header = read_header(path)
    with pytest.raises(CheckpointError, match="share bytes"):
        view(map_bytes(path), header.tensors["x"])


DAMAGES = {
    "cut off": (b"\xff" * 12, "cut off inside its header"),
    "not json": (b"\x05" + b"\0" * 7 + b"hello", "not JSON"),
    "list": (b"\x02" + b"\0" * 7 + b"[]", "not a JSON object"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_none_is_refused(damage: str, tmp_path: Path) -> None:
    content, message = DAMAGES[damage]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "x.safetensors")


LAYOUTS = {
    "truncated": ({"a": entry("F32", [4], 0, 16)}, 12, "truncated: "),
    "trailing": ({"a": entry("F32", [4], 0, 16)}, 20, "belong to no tensor"),
    "overlap": ({"a": entry("F32", [4], 0, 16), "b": entry("F32", [2], 8, 16)}, 16, "overlaps 'a'"),
    "hole": ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, 12, "leaves a hole after 'a'"),
    "size": ({"a": entry("F32", [3], 0, 16)}, 16, "needs 12 bytes, but its offsets span 16"),
    "dtype": ({"a": entry("Q4", [4], 0, 16)}, 16, "dtype 'Q4'"),
    "malformed": ({"a": {"dtype": "F32"}}, 0, "malformed header entry"),
    "negative": ({"a": entry("F32", [-1], 0, 4)}, 4, "malformed header entry"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_layout_is_named(layout: str, tmp_path: Path) -> None:
    header, size, message = LAYOUTS[layout]
    raw_file(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "x.safetensors")


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry("U8", [1], 0, 1))
    raw_file(tmp_path / "x.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), b"1")
    with pytest.raises(CheckpointError, match="names 'a' twice"):
        read_header(tmp_path / "x.safetensors")


def test_header_bytes_are_pinned() -> None:
    expected = b'{"__metadata__":{"k":"v"},"t":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    expected += b" " * (-len(expected) % 8)
    assert header_bytes([("t", "U8", (3,))], {"k": "v"}) == len(expected).to_bytes(8, "little") + expected


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.binary(max_size=40), max_size=5))
def test_streamed_files_are_read_by_the_reference_library(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, bytes]
) -> None:
    content = {name: data for name, data in content.items() if name != "__metadata__"}
    path = tmp_path_factory.mktemp("stream") / "x.safetensors"
    write_stream(path, ((name, "U8", np.frombuffer(data, np.uint8)) for name, data in content.items()), {"note": "ü"})
    found = load_file(path)
    assert {name: bytes(tensor.tolist()) for name, tensor in found.items()} == content
    assert set(read_header(path).tensors) == set(content)


def test_a_private_view_may_be_written_and_never_reaches_the_file(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4)}, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    header = read_header(tmp_path / "x.safetensors")
    view(map_bytes(header.path, "private"), header.tensors["x"])[:] = 5
    assert (tmp_path / "x.safetensors").read_bytes() == before


@given(st.binary(max_size=200), st.integers(1, 64), st.integers(0, 200))
def test_pieces_of_a_tensor_are_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, step: int, stop: int
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "x.safetensors"
    write_stream(path, [("before", "U8", np.ones(3, np.uint8)), ("x", "U8", np.frombuffer(data, np.uint8))], {})
    pieces = list(read_pieces(read_header(path).tensors["x"], step, min(stop, len(data))))
    assert b"".join(piece.tobytes() for piece in pieces) == data[:stop]
    assert all(piece.size == step for piece in pieces[:-1])


def test_pieces_that_arrive_make_aligned_tensors(tmp_path: Path) -> None:
    """Tensors of several dtypes, in pieces and mixed, as the reference library reads them."""
    parts = [
        ("mask", "U8", np.arange(3, dtype=np.uint8)),
        ("values", "F32", np.arange(2, dtype=np.float32)),
        ("values", "F32", np.arange(5, dtype=np.float32)),
        ("wide", "F64", np.arange(1, dtype=np.float64)),
        ("half", "F16", np.arange(3, dtype=np.float16)),
        ("empty", "U8", np.empty(0, np.uint8)),
    ]
    write_stream(tmp_path / "x.safetensors", parts, {"format": "x"})
    found = load_file(tmp_path / "x.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "mask": [0, 1, 2], "values": [0, 1, 0, 1, 2, 3, 4], "wide": [0], "half": [0, 1, 2], "empty": [],
    }  # fmt: skip
    header = read_header(tmp_path / "x.safetensors")
    assert all(info.offset % (DTYPE_BITS[info.dtype] // 8) == 0 for info in header.tensors.values())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_is_being_written_bears_a_name_of_its_own_whatever_the_processs_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)  # as in two containers that share a cache
    with replacing(tmp_path / "kept") as one, replacing(tmp_path / "kept") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "kept").read_text() == "one"  # the outer one ends last
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_error_of_the_system_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    def full() -> None:
        with replacing(tmp_path / "kept"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*kept'"):
        full()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["F32", "BF16", "U8", "F64"])
def test_entries_by_index_are_those_of_the_whole_tensor(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_PIECE", 64)
    header = storage.allocate_file(tmp_path / "x.safetensors", [("a", "U8", (3,)), ("w", dtype, (7, 29))], {})
    data = storage.map_bytes(tmp_path / "x.safetensors", "shared")
    info = header.tensors["w"]
    data[info.offset :] = np.random.default_rng(0).integers(0, 100, data.size - info.offset)
    whole = storage.view(data, info).reshape(-1)
    for chosen in ([], [0], [202], [0, 1, 5, 63, 64, 65, 130, 202], range(203)):
        indices = np.array(list(chosen), dtype=np.int64)
        found = storage.read_entries(info, indices)
        assert found.dtype == whole.dtype
        assert found.tobytes() == whole[indices].tobytes()
