"""Hidden states (or their gradients) of many batches: in memory, or, past a budget, in mapped scratch files."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from surgeon.checkpoint.storage import reserve

Shape = tuple[int, ...]


class States:
    """A tensor for each row and batch. All rows hold the same `shapes`, one per batch, in one dtype.

    With a `folder` each row is a file in it, which a later process finds again; `drop` deletes it.
    """

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, folder: Path | None, label: str = "hidden") -> None:
        self._shapes, self._dtype, self._folder, self._label = list(shapes), dtype, folder, label
        self._starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
        self._held: dict[tuple[int, int], torch.Tensor] = {}
        self._rows: dict[int, tuple[mmap.mmap, torch.Tensor]] = {}

    def put(self, row: int, batch: int, value: torch.Tensor) -> None:
        """Keep a copy of a tensor."""
        if self._folder is None:
            self._held[row, batch] = value.detach().clone()
        else:
            self._place(row, batch, make=True).copy_(value.detach())

    def get(self, row: int, batch: int, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return a copy of what was put there, on a device; the layers may change it in place."""
        held = self._held[row, batch] if self._folder is None else self._place(row, batch)
        return held.to(device, copy=True)

    def drop(self, row: int) -> None:
        """Forget a row, and delete its file."""
        for key in [key for key in self._held if key[0] == row]:
            del self._held[key]
        self._rows.pop(row, None)
        if self._folder is not None:
            self._path(row).unlink(missing_ok=True)

    def flush(self, row: int) -> None:
        """Force a row to disk, so that a later process may build on it."""
        if row in self._rows:
            self._rows[row][0].flush()

    def _path(self, row: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._label}-{row:05d}.bin"

    def _place(self, row: int, batch: int, make: bool = False) -> torch.Tensor:
        if row not in self._rows:
            self._rows[row] = self._map(self._path(row), make)
        start, stop = self._starts[batch], self._starts[batch + 1]
        return self._rows[row][1][start:stop].view(self._shapes[batch])

    def _map(self, path: Path, make: bool) -> tuple[mmap.mmap, torch.Tensor]:
        size = int(self._starts[-1]) * self._dtype.itemsize
        with path.open("w+b" if make and not path.exists() else "r+b") as file:
            if make and path.stat().st_size != size:
                reserve(file.fileno(), 0, size)  # a write to a mapped hole on a full disk would kill the process
            mapped = mmap.mmap(file.fileno(), size)
        return mapped, torch.frombuffer(mapped, dtype=self._dtype)


def bytes_needed(shapes: Sequence[Shape], rows: int, dtype: torch.dtype) -> int:
    """Return the bytes of so many rows."""
    return rows * dtype.itemsize * sum(math.prod(shape) for shape in shapes)
