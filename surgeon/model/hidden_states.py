"""Hidden states (or their gradients) of many batches: in memory, or, past a budget, in mapped scratch files."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from surgeon.checkpoint.storage import naming, reserve
from surgeon.errors import present

Shape = tuple[int, ...]


class States:
    """A tensor for each row and batch. All rows hold the same `shapes`, one per batch, in one dtype.

    With a `folder` each row is a file in it, which a later process finds again; `drop` deletes it. Without one a row is
    a piece of memory of its own on the device `home`, so that nothing that is kept for long stands among what layers
    make and drop. On the host, what comes from a GPU is in pinned memory, so that copies need not be waited for: those
    to and fro come one after the other on the same stream.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        dtype: torch.dtype,
        folder: Path | None,
        label: str = "hidden",
        home: str = "cpu",
    ) -> None:
        self._shapes, self._dtype, self._folder, self._label = list(shapes), dtype, folder, label
        self._home = torch.device(home)
        self._starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
        self._rows: dict[int, torch.Tensor] = {}
        self._maps: dict[int, mmap.mmap] = {}

    @property
    def on_disk(self) -> bool:
        """True if rows are files."""
        return self._folder is not None

    def put(self, row: int, batch: int, value: torch.Tensor) -> None:
        """Keep a copy of a tensor."""
        if row not in self._rows:
            self._rows[row] = self._open(row, make=True) if self._folder is not None else self._hold(value.is_cuda)
        place = self._place(row, batch)
        place.copy_(value.detach(), non_blocking=self._rows[row].is_pinned())

    def get(self, row: int, batch: int, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return a copy of what was put there, on a device; the layers may change it in place."""
        return self.part(row, batch, slice(None), slice(None), device)

    def part(
        self, row: int, batch: int, rows: slice, positions: slice, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """Return a copy of some of its rows and positions."""
        if row not in self._rows and self._folder is not None:
            self._rows[row] = self._open(row, make=False)
        place = self._place(row, batch)[rows, positions]
        return place.to(device, copy=True, non_blocking=self._rows[row].is_pinned())

    def drop(self, row: int) -> None:
        """Forget a row, and delete its file."""
        self._rows.pop(row, None)
        self._maps.pop(row, None)
        if self._folder is not None:
            self._path(row).unlink(missing_ok=True)

    def flush(self, row: int) -> None:
        """Force a row to disk, so that a later process may build on it."""
        if row in self._maps:
            self._maps[row].flush()

    def _path(self, row: int) -> Path:
        return present(self._folder) / f"{self._label}-{row:05d}.bin"

    def _place(self, row: int, batch: int) -> torch.Tensor:
        start, stop = self._starts[batch], self._starts[batch + 1]
        return self._rows[row][start:stop].view(self._shapes[batch])

    def _hold(self, for_gpu: bool) -> torch.Tensor:
        if self._home.type != "cpu" or for_gpu:
            pinned = self._home.type == "cpu"
            return torch.empty(int(self._starts[-1]), dtype=self._dtype, device=self._home, pin_memory=pinned)
        return torch.frombuffer(mmap.mmap(-1, self._bytes), dtype=self._dtype)

    def _open(self, row: int, make: bool) -> torch.Tensor:
        path = self._path(row)
        with naming(path), path.open("w+b" if make and not path.exists() else "r+b") as file:
            if make and path.stat().st_size != self._bytes:
                reserve(file.fileno(), 0, self._bytes)  # a write to a mapped hole on a full disk would kill the process
            self._maps[row] = mmap.mmap(file.fileno(), self._bytes)
        return torch.frombuffer(self._maps[row], dtype=self._dtype)

    @property
    def _bytes(self) -> int:
        return int(self._starts[-1]) * self._dtype.itemsize


def bytes_needed(shapes: Sequence[Shape], rows: int, dtype: torch.dtype) -> int:
    """Return the bytes of so many rows."""
    return rows * dtype.itemsize * sum(math.prod(shape) for shape in shapes)
