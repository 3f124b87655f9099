"""One safetensors file: its header, views of its mapped bytes, and writing a new one.

The format (https://github.com/huggingface/safetensors): eight bytes little-endian header length, a JSON
header, then the tensors' bytes without gaps. Models, importance scores and regions are all such files, so
this module serves all three. It needs numpy and ml_dtypes only; torch is imported by whoever asks for tensors.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BufferedWriter
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from surgeon import inside
from surgeon.checkpoint.hashing import CHANGED, Stamp, file_stamp, is_settled
from surgeon.checkpoint.plain_json import LONGEST, NotPlain, as_object, as_shape, as_size, as_texts, parse_json
from surgeon.checkpoint.remote import RemoteFile, stream_range
from surgeon.errors import CheckpointError
from surgeon.inside import naming, reserve
from surgeon.mapped import remember

_FIRST_READ = 1 << 16  # of a file on the Hub; holds the header of a shard of some five hundred tensors
_PIECE = 1 << 20  # bytes of entries that are gathered at a time, so that indices of a piece stay small beside it

# Bits per element of every dtype that safetensors knows.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

# The sub-byte dtypes are missing on purpose: several entries share a byte, so no view can address them.
NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("<u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8"),
    "I8": np.dtype("<i1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "C64": np.dtype("<c8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}  # fmt: skip

File = Path | RemoteFile  # on this disk, or on the Hub and read by ranges
MapMode = Literal["read", "private", "shared"]
_ACCESS = {"read": mmap.ACCESS_READ, "private": mmap.ACCESS_COPY, "shared": mmap.ACCESS_WRITE}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; `offset` counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: File
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The header of one file. `data_start` is the byte at which tensor data begins.

    `stamp` is that of a file on this disk when its header was read: with another one it is another file. Only a
    `settled` one tells that the file has not changed since.
    """

    path: File
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    data_start: int
    file_size: int
    stamp: Stamp | None = None
    settled: bool = False


def read_header(path: File) -> Header:
    """Read and check the header of one safetensors file; no tensor byte is read.

    Raises:
        CheckpointError: the file is missing, truncated, has duplicate names, an unknown dtype, sizes that do
            not fit shapes, or data that overlap, leave holes or stop short of the end of the file.
    """
    stamp, settled = None, False
    if isinstance(path, RemoteFile):
        size = path.size
        start = b"".join(stream_range(path, 0, min(size, _FIRST_READ)))
        length = _header_length(path, start, size)
        text = start[8 : 8 + length] + b"".join(stream_range(path, len(start), 8 + length - len(start)))
    else:
        try:
            with path.open("rb") as file:
                stamp = file_stamp(os.fstat(file.fileno()))
                size, settled = stamp[2], is_settled(stamp)
                text = file.read(_header_length(path, file.read(8), size))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
    try:
        entries = as_object(parse_json(text), "it")
        metadata = as_texts(entries.pop("__metadata__", {}), "__metadata__")
    except NotPlain as error:
        raise CheckpointError(f"{path}: the header cannot be read: {error}; fetch the file again") from None
    data_start = 8 + len(text)
    tensors = {name: _tensor_info(path, name, entry, data_start) for name, entry in entries.items()}
    _check_layout(path, tensors, data_start, size)
    return Header(path, metadata, tensors, data_start, size, stamp, settled)


def _header_length(path: File, start: bytes, size: int) -> int:
    length = int.from_bytes(start[:8], "little")
    if LONGEST < length <= size - 8:
        raise CheckpointError(f"{path}: a header of {length:,} bytes; the longest that is read has {LONGEST:,}")
    if size < 8 or length > size - 8:
        if not str(path).endswith(".safetensors"):
            raise CheckpointError(f"{path}: not a safetensors file, which checkpoints, regions and patches are")
        raise CheckpointError(
            f"{path}: not a safetensors file, or cut off inside its header "
            f"({size} bytes in all, header length {length}); fetch the file again"
        )
    return length


def _tensor_info(path: File, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape = entry["dtype"], as_shape(entry["shape"])
        begin, end = (as_size(value, "an offset") for value in entry["data_offsets"])
        sane = isinstance(dtype, str) and begin <= end
    except (TypeError, KeyError, ValueError):
        sane = False
    if not sane:
        raise CheckpointError(f"{path}: tensor '{name}' has a malformed header entry: {str(entry)[:200]}")
    if dtype not in DTYPE_BITS:
        raise CheckpointError(f"{path}: tensor '{name}' has dtype {dtype!r}, which surgeon does not know")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != end - begin:
        raise CheckpointError(
            f"{path}: tensor '{name}' of shape {list(shape)} and dtype {dtype} needs {bits / 8:g} bytes, "
            f"but its offsets span {end - begin}"
        )
    return TensorInfo(name, dtype, shape, path, data_start + begin, end - begin)


def _check_layout(path: File, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    position, previous = data_start, "the header"
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != position:
            what = "overlaps" if info.offset < position else "leaves a hole after"
            raise CheckpointError(f"{path}: tensor '{info.name}' {what} {previous}; the file is damaged")
        position, previous = info.offset + info.nbytes, f"'{info.name}'"
    if position != size:
        what = "truncated" if size < position else "followed by bytes that belong to no tensor"
        raise CheckpointError(f"{path}: {what}: {size} bytes in all, {position} by its header; fetch the file again")


def on_disk(file: File) -> Path:
    """Return the path of a file that must have been downloaded by now.

    Raises:
        CheckpointError: it has not been.
    """
    if isinstance(file, RemoteFile):
        raise CheckpointError(f"{file}: has not been downloaded; `hf download {file.repository}` and name its folder")
    return file


def map_bytes(path: File, mode: MapMode = "read") -> NDArray[np.uint8]:
    """Map a whole file as bytes.

    `read` is read-only; `private` may be written in memory and never reaches the file (copy on write, page
    by page); `shared` writes to the file.
    """
    with on_disk(path).open("r+b" if mode == "shared" else "rb") as file:
        remember(on_disk(path), os.fstat(file.fileno()).st_size)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=_ACCESS[mode]), dtype=np.uint8)


def view(data: NDArray[np.uint8], info: TensorInfo) -> NDArray[Any]:
    """View one tensor inside the mapped bytes of its file, in its own shape and dtype, copying nothing.

    Raises:
        CheckpointError: the dtype packs several entries into a byte, or the tensor is not aligned.
    """
    return data[info.offset : info.offset + info.nbytes].view(_dtype(info)).reshape(info.shape)


def _dtype(info: TensorInfo) -> np.dtype[Any]:
    dtype = NUMPY_DTYPES.get(info.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{info.path}: tensor '{info.name}' has dtype {info.dtype}, whose entries share bytes; surgeon "
            "copies such tensors but does not read or edit them: use the unquantized checkpoint"
        )
    return dtype


def read_pieces(info: TensorInfo, step: int, stop: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """Yield a tensor's bytes up to `stop` in pieces of `step`, the last one shorter, in memory of their own.

    Unlike parts of a mapped view they are gone when dropped. A file on the Hub is read with one request.

    Raises:
        CheckpointError: the file became shorter.
    """
    stop = info.nbytes if stop is None else stop
    if isinstance(info.path, RemoteFile):
        waiting = bytearray()
        for arrived in stream_range(info.path, info.offset, stop):
            waiting += arrived
            while len(waiting) >= step:
                yield np.frombuffer(bytes(waiting[:step]), np.uint8)
                del waiting[:step]
        if waiting:
            yield np.frombuffer(bytes(waiting), np.uint8)
        return
    with info.path.open("rb", buffering=0) as file:
        for start in range(0, stop, step):
            yield _read(file.fileno(), info, start, min(step, stop - start))


def read_entries(info: TensorInfo, indices: NDArray[np.int64]) -> NDArray[Any]:
    """Read entries of one tensor by their sorted flat indices; shape (n,), the tensor's dtype.

    Nothing is mapped, so that a file that becomes shorter meanwhile is an error and no fault. A file on the Hub is
    read from the first entry to the last.

    Raises:
        CheckpointError: the file became shorter.
    """
    if isinstance(info.path, RemoteFile):
        first, last = (int(indices[0]), int(indices[-1])) if indices.size else (0, -1)
        return read_span(info, first, last + 1)[indices - first]
    dtype = _dtype(info)
    values = np.empty(indices.size, dtype)
    step = _PIECE // dtype.itemsize
    bounds = np.searchsorted(indices, np.arange(0, info.numel + step, step))
    with info.path.open("rb", buffering=0) as file:
        for number in np.flatnonzero(np.diff(bounds)):
            chosen, first = slice(bounds[number], bounds[number + 1]), int(number) * step
            count = min(step, info.numel - first) * dtype.itemsize
            piece = _read(file.fileno(), info, first * dtype.itemsize, count)
            values[chosen] = piece.view(dtype)[indices[chosen] - first]
    return values


def read_span(info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
    """Read the entries of one tensor from flat index `start` to before `stop`; shape (n,), memory of their own.

    Raises:
        CheckpointError: the file became shorter.
    """
    dtype = _dtype(info)
    return read_bytes(info, start * dtype.itemsize, (stop - start) * dtype.itemsize).view(dtype)


def read_bytes(info: TensorInfo, start: int, count: int) -> NDArray[np.uint8]:
    """Read bytes of one tensor into memory of their own.

    Raises:
        CheckpointError: the file became shorter.
    """
    if isinstance(info.path, RemoteFile):
        data, done = np.empty(count, np.uint8), 0
        for piece in stream_range(info.path, info.offset + start, count):
            data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        return data
    with info.path.open("rb", buffering=0) as file:
        return _read(file.fileno(), info, start, count)


def _read(descriptor: int, info: TensorInfo, start: int, count: int) -> NDArray[np.uint8]:
    """Read bytes of one tensor of an open file, wherever others read in it."""
    data, done = np.empty(count, np.uint8), 0
    while done < count:
        arrived = os.preadv(descriptor, [data[done:].data], info.offset + start + done)
        if not arrived:
            raise CheckpointError(f"{info.path}: {CHANGED}")
        done += arrived
    return data


class OpenFile:
    """A file on this disk, held open: it stays the one whose header was read, whatever takes its name meanwhile.

    Its tensors are read and not mapped, so that a file that becomes shorter is an error and no fault: regions, patches.
    """

    def __init__(self, header: Header) -> None:
        """Open the file.

        Raises:
            CheckpointError: it is another one than when its header was read.
        """
        path = on_disk(header.path)
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._descriptor)
        if file_stamp(os.fstat(self._descriptor)) != header.stamp:
            raise CheckpointError(f"{path}: {CHANGED}")

    def tensor(self, info: TensorInfo) -> NDArray[Any]:
        """Read a tensor, in its own shape and dtype.

        Raises:
            CheckpointError: the file became shorter.
        """
        return view(_read(self._descriptor, info, 0, info.nbytes), replace(info, offset=0))


TensorSpec = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def header_bytes(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Lay the tensors out in the given order and return the length word and header, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in specs:
        end = position + math.prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def allocate_file(path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> Header:
    """Create a file whose tensors are all zero, its blocks reserved, ready to be mapped `shared`."""
    header = header_bytes(specs, metadata)
    data = sum(math.prod(shape) * DTYPE_BITS[dtype] // 8 for _, dtype, shape in specs)
    with naming(path), path.open("wb") as file:
        file.write(header)
        file.flush()
        if data:  # a write to a mapped hole on a full disk kills the process, so reserve the blocks now
            reserve(file.fileno(), len(header), data)
    return read_header(path)


def write_stream(
    path: Path, pieces: Iterable[tuple[str, str, NDArray[Any]]], finish: Mapping[str, str] | None = None
) -> None:
    """Write one-dimensional tensors that arrive piece by piece as (name, dtype, entries), holding one piece.

    Successive pieces of one name are one tensor. Wider dtypes come first in the file, so that every tensor is
    aligned. `finish` is the metadata; it is read when all tensors have been written, so that their producer
    may still be filling it.
    """
    sizes: dict[tuple[str, str], int] = {}
    bodies = {width: path.with_name(f"{path.name}.body{width}") for width in (64, 32, 16, 8)}
    try:
        with ExitStack() as stack:
            open_bodies: dict[int, BufferedWriter] = {}
            for name, dtype, data in pieces:
                width = DTYPE_BITS[dtype]
                if width not in open_bodies:
                    open_bodies[width] = stack.enter_context(BufferedWriter(inside.create(bodies[width])))
                open_bodies[width].write(np.ascontiguousarray(data).view(np.uint8).data)
                sizes[name, dtype] = sizes.get((name, dtype), 0) + data.size
        order = sorted(sizes, key=lambda key: -DTYPE_BITS[key[1]])  # stable: by arrival within a width
        with path.open("wb") as target:
            target.write(header_bytes([(name, dtype, (sizes[name, dtype],)) for name, dtype in order], finish or {}))
            for width, body in bodies.items():
                if width in open_bodies:
                    with body.open("rb") as source:
                        shutil.copyfileobj(source, target, 1 << 20)
    finally:
        for body in bodies.values():
            inside.remove(body)
