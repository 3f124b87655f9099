"""Copy and poke: bytes stream from a source file to its copy, edited entries are set on the way, hashes taken.

Every byte that no edit touches stays as it is, header included, because it is never interpreted. The source is read,
not mapped: one that becomes shorter meanwhile is an error and no fault. The plain copy of a quantized shard is decoded
and poked a piece at a time.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon import inside
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded, StoredEdit, parts_of
from surgeon.checkpoint.fingerprint import FileDigest, hashes_of, known_hashes
from surgeon.checkpoint.hashing import CHANGED, Stamp, file_stamp
from surgeon.checkpoint.quantized import plain_start, plain_tensors
from surgeon.checkpoint.storage import Header, TensorInfo, on_disk, read_pieces
from surgeon.errors import CheckpointError, EnvironmentFailure
from surgeon.inside import naming
from surgeon.operations.edits import Edit, EditCount, Surgery

_BUFFER_BYTES = 1 << 18  # stays in the processor's cache between reading, hashing, poking and writing
_PIECE_BYTES = 1 << 20  # of a plain copy at a time, whatever the tensor's size
_TO_DISK_EVERY = 1 << 25  # bytes: large enough for a disk at full speed, small enough to stop within a second
# Errors by which the kernel says that it cannot copy between these two files itself.
_NOT_SUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@dataclass(frozen=True)
class Copied:
    """A file that was written: its SHA-256, its stamp after the last byte, and how much of it was edited.

    `entries` are all that were acted on; `edits` leave out stored copies of a tied weight that count elsewhere.
    """

    sha256: str
    stamp: Stamp
    entries: int = 0
    edits: EditCount = field(default_factory=EditCount)


def copy_shard(surgery: Surgery, header: Header, names: Sequence[str], target: Path, stopping: Event) -> Copied:
    """Copy one shard to `target` with the edits of the named tensors.

    The source's own hashes are made on the way, if they are not known. Memory: one small buffer, and the indices and
    values of one tensor's edit.

    Raises:
        CheckpointError: the source changed meanwhile.
        EnvironmentFailure: `stopping` was set.
    """
    path = on_disk(header.path)
    with naming(target), path.open("rb", buffering=0) as reader, inside.create(target) as file:
        if file_stamp(os.fstat(reader.fileno())) != header.stamp:
            raise CheckpointError(f"{path}: {CHANGED}")
        writer = _Writer(file, stopping)
        if not names:
            _copy_inside_the_kernel(reader, writer, header.file_size)
            return replace(writer.finish(), sha256=hashes_of(header).file)
        source = None if known_hashes(header) else FileDigest(header)
        entries, edits, position = 0, EditCount(), 0
        for info, name in _touched(surgery, header, names):
            _copy(reader, writer, info.offset - position, source)
            edit, stored = surgery.stored_edits(name)
            _copy(reader, writer, info.nbytes, source, stored.get(info.name))
            if info is parts_of(surgery.checkpoint.info(name))[0]:
                entries += edit.entries
                edits += edit.count() if name in surgery.counted else EditCount()
            position = info.offset + info.nbytes
        _copy(reader, writer, header.file_size - position, source)
        if source is not None:
            source.finish()  # which has it remembered
        return replace(writer.finish(), entries=entries, edits=edits)


def _touched(surgery: Surgery, header: Header, names: Sequence[str]) -> list[tuple[TensorInfo, str]]:
    """Return the stored tensors of a file that may change, as they lie, each with the logical one that it is of."""
    touched = [(info, name) for name in names for info in surgery.stored(name)]
    here = [(info, name) for info, name in touched if info.path == header.path]
    return sorted(here, key=lambda item: item[0].offset)


class _Writer:
    """A file that is written: hashed on the way, and sent to the disk while the processor goes on."""

    def __init__(self, file: FileIO, stopping: Event) -> None:
        self.file, self.stopping = file, stopping
        self._digest, self._asked, self._written = hashlib.sha256(), 0, 0

    def put(self, data: memoryview | bytes) -> None:
        """Write bytes, and hash them.

        Raises:
            EnvironmentFailure: `stopping` was set.
        """
        if self.stopping.is_set():
            raise EnvironmentFailure("stopped, since something else failed")
        view = memoryview(data)
        self._digest.update(view)
        while view:
            view = view[self.file.write(view) or 0 :]
        self.passed(len(data))

    def passed(self, count: int) -> None:
        """Take note of bytes; every few megabytes have them sent to disk without waiting: the flush then waits less."""
        self._written += count
        if self._written - self._asked >= _TO_DISK_EVERY and hasattr(os, "posix_fadvise"):
            size = self._written - self._asked
            os.posix_fadvise(self.file.fileno(), self._asked, size, os.POSIX_FADV_DONTNEED)
            self._asked = self._written

    def finish(self) -> Copied:
        """Say what was written."""
        return Copied(self._digest.hexdigest(), file_stamp(os.fstat(self.file.fileno())))


def _copy(
    reader: FileIO, writer: _Writer, count: int, source: FileDigest | None = None, edit: StoredEdit | None = None
) -> None:
    """Copy `count` bytes; with an edit, they are one tensor's, and its entries get their new values."""
    width = edit.values.itemsize if edit is not None else 1
    buffer = np.empty(min(_BUFFER_BYTES - _BUFFER_BYTES % width, count), np.uint8)
    for start in range(0, count, buffer.size or 1):
        chunk = buffer[: count - start]
        _read_fully(reader, chunk)
        if source is not None:
            source.update(chunk.data)
        if edit is not None:
            poke(chunk.view(edit.values.dtype), start // width, edit)
        writer.put(chunk.data)


def _read_fully(reader: FileIO, chunk: NDArray[np.uint8]) -> None:
    done = 0
    while done < chunk.size:
        count = reader.readinto(chunk[done:].data)
        if not count:
            raise CheckpointError(f"{reader.name!s}: {CHANGED}")
        done += count


def _copy_inside_the_kernel(reader: FileIO, writer: _Writer, size: int) -> None:
    """Copy a file without its bytes passing through this process; file systems with reflinks share the blocks."""
    done = 0
    try:
        while done < size and hasattr(os, "copy_file_range") and not writer.stopping.is_set():
            count = os.copy_file_range(reader.fileno(), writer.file.fileno(), min(size - done, _TO_DISK_EVERY))
            if not count:
                raise CheckpointError(f"{reader.name!s}: {CHANGED}")
            writer.passed(count)
            done += count
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    reader.seek(done)
    _copy(reader, writer, size - done)


def copy_small(source: Path, target: Path) -> Copied:
    """Copy a file that is not weights.

    Raises:
        CheckpointError: the source changed meanwhile.
    """
    with naming(target), source.open("rb", buffering=0) as reader, inside.create(target) as file:
        before, writer = file_stamp(os.fstat(reader.fileno())), _Writer(file, Event())
        while piece := reader.read(1 << 20):
            writer.put(piece)
        if file_stamp(os.fstat(reader.fileno())) != before:
            raise CheckpointError(f"{source}: {CHANGED}")
        return writer.finish()


def copy_plain_shard(surgery: Surgery, header: Header, names: Sequence[str], target: Path, stopping: Event) -> Copied:
    """Write the plain copy of one shard with the edits of the named tensors.

    Memory: one piece, and the indices and values of one tensor's edit.

    Raises:
        CheckpointError: the source changed meanwhile, or a scale is none.
        EnvironmentFailure: `stopping` was set.
    """
    checkpoint, edited = surgery.checkpoint, frozenset(names)
    entries, edits = 0, EditCount()
    with naming(target), inside.create(target) as file:
        writer = _Writer(file, stopping)
        writer.put(plain_start(checkpoint, header))
        for info in plain_tensors(checkpoint, header):
            edit = surgery.edit(info.name) if info.name in edited else None
            if edit is not None:
                entries += edit.entries
                edits += edit.count() if info.name in surgery.counted else EditCount()
            for piece in _pieces(checkpoint, info, edit):
                writer.put(piece.data)
        return replace(writer.finish(), entries=entries, edits=edits)


def _pieces(checkpoint: Checkpoint, info: TensorInfo, edit: Edit | None) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a logical tensor, edited."""
    if not isinstance(info, Coded) and edit is None:
        yield from read_pieces(info, _PIECE_BYTES)
        return
    step = info.codec.piece(info) if isinstance(info, Coded) else _PIECE_BYTES
    for start in range(0, info.numel, step):
        values: NDArray[Any] = checkpoint.span(info, start, min(start + step, info.numel))
        if edit is not None:
            poke(values, start, edit)
        yield np.ascontiguousarray(values).view(np.uint8)


def poke(values: NDArray[Any], start: int, edit: Edit | StoredEdit) -> None:
    """Set those entries of a tensor that an edit changes; `values` are the entries from flat index `start` on."""
    low, high = np.searchsorted(edit.indices, (start, start + values.size))
    values[edit.indices[low:high] - start] = edit.values[low:high]
