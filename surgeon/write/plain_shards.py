"""Decode and poke: the plain copy of a quantized shard, a piece at a time, with the edits of its entries."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon import inside
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded
from surgeon.checkpoint.hashing import file_stamp
from surgeon.checkpoint.quantized import plain_start, tensors_of
from surgeon.checkpoint.storage import Header, TensorInfo, read_pieces
from surgeon.errors import EnvironmentFailure
from surgeon.inside import naming
from surgeon.operations.edits import Edit, EditCount, Surgery
from surgeon.write.shards import Copied, write_fully

_PIECE_BYTES = 1 << 20  # at a time, whatever the tensor's size


def copy_plain_shard(surgery: Surgery, header: Header, names: Sequence[str], target: Path, stopping: Event) -> Copied:
    """Write the plain copy of one shard with the edits of the named tensors.

    Memory: one piece, and the indices and values of one tensor's edit.

    Raises:
        CheckpointError: the source changed meanwhile, or a scale is none.
        EnvironmentFailure: `stopping` was set.
    """
    checkpoint, edited = surgery.checkpoint, frozenset(names)
    digest, entries, edits = hashlib.sha256(), 0, EditCount()
    infos = tensors_of(checkpoint, header)
    with naming(target), inside.create(target) as writer:

        def put(data: NDArray[np.uint8]) -> None:
            if stopping.is_set():
                raise EnvironmentFailure("stopped, since something else failed")
            digest.update(data.data)
            write_fully(writer, data)

        put(np.frombuffer(plain_start(header, infos), np.uint8))
        for info in infos:
            edit = surgery.edit(info.name) if info.name in edited else None
            if edit is not None:
                entries += edit.entries
                edits += edit.count() if info.name in surgery.counted else EditCount()
            for piece in _pieces(checkpoint, info, edit):
                put(piece)
        return Copied(digest.hexdigest(), file_stamp(os.fstat(writer.fileno())), entries, edits)


def _pieces(checkpoint: Checkpoint, info: TensorInfo, edit: Edit | None) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a logical tensor, edited."""
    if not isinstance(info, Coded) and edit is None:
        yield from read_pieces(info, _PIECE_BYTES)
        return
    step = info.codec.piece(info) if isinstance(info, Coded) else _PIECE_BYTES
    for start in range(0, info.numel, step):
        values: NDArray[Any] = checkpoint.span(info, start, min(start + step, info.numel))
        if edit is not None:
            low, high = np.searchsorted(edit.indices, (start, start + values.size))
            values[edit.indices[low:high] - start] = edit.values[low:high]
        yield np.ascontiguousarray(values).view(np.uint8)
