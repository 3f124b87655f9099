"""A set of flat indices kept small, and what is done to a flat tensor at these places.

Four forms, the smallest that fits: a span; whole rows, columns or their crossings; gaps between successive
indices; a mask of one bit an entry. Torch wants int64 indices, so they are made anew for each use and dropped:
eight bytes an index would be more than most values they belong to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from surgeon.region.region import Indices

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DENSE = 8  # from one entry in eight on, a bit per entry of the tensor is smaller than a byte per index
_GAP_TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def bits(tensor: Tensor) -> Tensor:
    """View a tensor as integers of the same width, so that a write or comparison is about bits."""
    return tensor.view(INTEGERS[tensor.element_size()])


class Entries:
    """Flat indices into a tensor of one dimension, in ascending order; `count` says how many."""

    count: int

    def indices(self) -> Tensor:
        """Return them as int64."""
        raise NotImplementedError

    def select(self, flat: Tensor) -> Tensor:
        """Return the entries of `flat` at these places, in memory of their own."""
        return flat.index_select(0, self.indices())

    def write(self, flat: Tensor, values: Tensor) -> None:
        """Write values, of the dtype of `flat`, at these places, bit by bit."""
        bits(flat).scatter_(0, self.indices(), bits(values))

    def clear(self, flat: Tensor) -> None:
        """Set the entries at these places to positive zero."""
        target = bits(flat)
        target.scatter_(0, self.indices(), target.new_zeros(self.count))  # on a CPU much faster than index_fill_

    def tensors(self) -> list[Tensor]:
        """Return what is kept in memory."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def to(self, device: torch.device) -> None:
        """Move what is kept to a device."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))


@dataclass(eq=False)
class Span(Entries):
    """The entries from `start` on."""

    start: int
    count: int
    device: torch.device

    def indices(self) -> Tensor:
        """Return them as int64."""
        return torch.arange(self.start, self.start + self.count, device=self.device)

    def select(self, flat: Tensor) -> Tensor:
        """Return the entries at these places."""
        return flat.narrow(0, self.start, self.count).clone()

    def write(self, flat: Tensor, values: Tensor) -> None:
        """Write values at these places."""
        bits(flat).narrow(0, self.start, self.count).copy_(bits(values))

    def clear(self, flat: Tensor) -> None:
        """Zero these places."""
        bits(flat).narrow(0, self.start, self.count).zero_()

    def to(self, device: torch.device) -> None:
        """Note the device; nothing else is kept."""
        self.device = device


@dataclass(eq=False)
class Grid(Entries):
    """The crossings of some rows and some columns of a matrix; all of either is an axis of its own length."""

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = self.rows.numel() * self.columns.numel()

    def indices(self) -> Tensor:
        """Return them as int64."""
        return (self.rows[:, None] * self.shape[1] + self.columns).view(-1)

    def _key(self) -> tuple[slice | Tensor, slice | Tensor]:
        rows, columns = (
            slice(None) if axis.numel() == length else axis
            for axis, length in zip((self.rows, self.columns), self.shape, strict=True)
        )
        both = isinstance(rows, Tensor) and isinstance(columns, Tensor)
        return (rows[:, None] if both else rows), columns  # type: ignore[index]

    def select(self, flat: Tensor) -> Tensor:
        """Return the entries at these places."""
        return flat.view(self.shape)[self._key()].reshape(-1)

    def write(self, flat: Tensor, values: Tensor) -> None:
        """Write values at these places."""
        bits(flat).view(self.shape)[self._key()] = bits(values).view(self.rows.numel(), self.columns.numel())

    def clear(self, flat: Tensor) -> None:
        """Zero these places."""
        bits(flat).view(self.shape)[self._key()] = 0


@dataclass(eq=False)
class Gaps(Entries):
    """Differences between successive indices, the first one from 0, in the narrowest type that holds them."""

    gaps: Tensor
    count: int

    def indices(self) -> Tensor:
        """Return them as int64."""
        return torch.cumsum(self.gaps, 0, dtype=torch.int64)


@dataclass(eq=False)
class Bits(Entries):
    """One bit per entry of the tensor, in the order of `numpy.packbits`."""

    packed: Tensor
    count: int

    def indices(self) -> Tensor:
        """Return them as int64."""
        if self.packed.device.type == "cpu":
            return torch.from_numpy(np.flatnonzero(np.unpackbits(self.packed.numpy()).view(np.bool_)))
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.packed.device)
        return ((self.packed[:, None] >> shifts) & 1).view(-1).nonzero().view(-1)


def encode(indices: Indices, shape: tuple[int, ...], device: torch.device) -> Entries:
    """Keep sorted, distinct flat indices into a tensor of some shape in the smallest form that fits them."""
    count = int(indices.size)
    if not count or int(indices[-1] - indices[0]) == count - 1:
        return Span(int(indices[0]) if count else 0, count, device)
    grid = _as_grid(indices, shape, device)
    if grid is not None:
        return grid
    if count * _DENSE >= math.prod(shape):
        mask = np.zeros(math.prod(shape), dtype=np.bool_)
        mask[indices] = True
        return Bits(torch.from_numpy(np.packbits(mask)).to(device), count)
    gaps = np.diff(indices, prepend=np.int64(0))
    narrow = next(kind for kind in _GAP_TYPES if gaps.max() <= torch.iinfo(kind).max)
    return Gaps(torch.from_numpy(gaps).to(narrow).to(device), count)


def _as_grid(indices: Indices, shape: tuple[int, ...], device: torch.device) -> Grid | None:
    """Return the crossings of rows and columns that these indices are, if they are: all of those they touch."""
    if len(shape) < 2:
        return None
    width = shape[-1]
    height = math.prod(shape) // width
    rows = np.flatnonzero(np.bincount(indices // width, minlength=height))
    columns = np.flatnonzero(np.bincount(indices % width, minlength=width))
    if rows.size * columns.size != indices.size:
        return None
    return Grid((height, width), torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device))
