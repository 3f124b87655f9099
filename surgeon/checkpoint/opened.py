"""Small safetensors files that are read and not mapped: regions and patches."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.hashing import CHANGED, file_stamp
from surgeon.checkpoint.storage import Header, TensorInfo, on_disk, view
from surgeon.errors import CheckpointError

_PIECE = 1 << 24  # bytes a read: each is copied once more, so that little is held twice


class OpenFile:
    """A file on this disk, held open: it stays the one whose header was read, whatever takes its name meanwhile.

    Its tensors are read and not mapped, so that a file that becomes shorter is an error and no fault.
    """

    def __init__(self, header: Header) -> None:
        """Open the file.

        Raises:
            CheckpointError: it is another one than when its header was read.
        """
        self._path = on_disk(header.path)
        self._descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._descriptor)
        if file_stamp(os.fstat(self._descriptor)) != header.stamp:
            raise CheckpointError(f"{self._path}: {CHANGED}")

    def tensor(self, info: TensorInfo) -> NDArray[Any]:
        """Read a tensor, in its own shape and dtype.

        Raises:
            CheckpointError: the file became shorter.
        """
        data, done = bytearray(info.nbytes), 0
        while done < info.nbytes:
            piece = os.pread(self._descriptor, min(info.nbytes - done, _PIECE), info.offset + done)
            if not piece:
                raise CheckpointError(f"{self._path}: {CHANGED}")
            data[done : done + len(piece)] = piece
            done += len(piece)
        return view(np.frombuffer(data, np.uint8), replace(info, offset=0))
