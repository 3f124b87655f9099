"""A set of flat indices kept small, and what is done to a flat tensor at these places.

Five forms: a span; whole rows, columns or their crossings; a short list of indices; gaps between successive
indices; a mask of one bit an entry. Torch wants int64 indices: only a short list keeps them, since there what is
done in a step counts, not memory; gaps and masks make them anew for each use, a piece of the tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from surgeon.region.region import Indices

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ARE_BITS = frozenset(INTEGERS.values())
SHORT = 1024  # indices, so that no tensor keeps more than 8 KiB of them
# Bytes of a mask that are taken at a time: the indices that they make stay in a processor's cache, or in small memory.
_PIECES = {"cpu": 1 << 14}
_PIECE = 1 << 22
_DENSE = 8  # from one entry in eight on, a bit per entry of the tensor is smaller than a byte per index
_GAP_TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def bits(tensor: Tensor) -> Tensor:
    """View a tensor as integers of the same width, so that a write or comparison is about bits."""
    return tensor if tensor.dtype in _ARE_BITS else tensor.view(INTEGERS[tensor.element_size()])


@dataclass(eq=False)
class Entries:
    """Flat indices into a tensor of one dimension, in ascending order; `count` says how many."""

    device: torch.device
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
        if device == self.device:
            return
        self.device = device
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))


@dataclass(eq=False)
class Span(Entries):
    """The entries from `start` on."""

    start: int

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


Axis = slice | Tensor  # successive rows or columns, or their numbers


@dataclass(eq=False)
class Grid(Entries):
    """The crossings of some rows and some columns of a matrix."""

    shape: tuple[int, int]
    rows: Axis
    columns: Axis

    def indices(self) -> Tensor:
        """Return them as int64."""
        rows, columns = (
            torch.arange(axis.start, axis.stop, device=self.device) if isinstance(axis, slice) else axis
            for axis in (self.rows, self.columns)
        )
        return (rows[:, None] * self.shape[1] + columns).view(-1)

    def _key(self) -> tuple[Axis, Axis]:
        both = isinstance(self.rows, Tensor) and isinstance(self.columns, Tensor)
        return (self.rows[:, None] if both else self.rows), self.columns  # type: ignore[index]

    def select(self, flat: Tensor) -> Tensor:
        """Return the entries at these places."""
        chosen = bits(flat).view(self.shape)[self._key()]
        return chosen.clone(memory_format=torch.contiguous_format).view(-1).view(flat.dtype)

    def write(self, flat: Tensor, values: Tensor) -> None:
        """Write values at these places."""
        axis = self.columns
        width = axis.stop - axis.start if isinstance(axis, slice) else axis.numel()
        bits(flat).view(self.shape)[self._key()] = bits(values).view(-1, width)

    def clear(self, flat: Tensor) -> None:
        """Zero these places."""
        bits(flat).view(self.shape)[self._key()] = 0


@dataclass(eq=False)
class Listed(Entries):
    """A few indices as they are used."""

    listed: Tensor

    def indices(self) -> Tensor:
        """Return them as int64."""
        return self.listed


@dataclass(eq=False)
class Gaps(Entries):
    """Differences between successive indices, the first one from 0, in the narrowest type that holds them."""

    gaps: Tensor

    def indices(self) -> Tensor:
        """Return them as int64."""
        return torch.cumsum(self.gaps, 0, dtype=torch.int64)


@dataclass(eq=False)
class Bits(Entries):
    """One bit per entry of the tensor, in the order of `numpy.packbits`."""

    packed: Tensor

    def indices(self) -> Tensor:
        """Return them as int64."""
        return _places(self.packed)

    def select(self, flat: Tensor) -> Tensor:
        """Return the entries at these places."""
        found = [piece.index_select(0, _places(packed)) for piece, packed in self._pieces(flat)]
        return torch.cat(found).view(flat.dtype)

    def write(self, flat: Tensor, values: Tensor) -> None:
        """Write values at these places."""
        source, done = bits(values), 0
        for piece, packed in self._pieces(flat):
            places = _places(packed)
            piece.scatter_(0, places, source[done : done + places.numel()])
            done += places.numel()

    def clear(self, flat: Tensor) -> None:
        """Zero these places: multiply integers by 0 there and by 1 elsewhere, which needs no indices."""
        for piece, packed in self._pieces(flat):
            piece.mul_(_unpacked(~packed)[: piece.numel()])

    def _pieces(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield parts of `flat`, as integers, with their parts of the mask."""
        target, step = bits(flat), _PIECES.get(flat.device.type, _PIECE)
        for start in range(0, self.packed.numel(), step):
            yield target[8 * start : 8 * (start + step)], self.packed[start : start + step]


def _unpacked(packed: Tensor) -> Tensor:
    """Return a byte, 0 or 1, for each bit."""
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy()))
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & 1).view(-1)


def _places(packed: Tensor) -> Tensor:
    """Return the indices of the bits that are set, as int64."""
    if packed.device.type == "cpu":  # several times as fast as torch
        return torch.from_numpy(np.flatnonzero(np.unpackbits(packed.numpy()).view(np.bool_)))
    return _unpacked(packed).nonzero().view(-1)


def encode(indices: Indices, shape: tuple[int, ...], device: torch.device) -> Entries:
    """Keep sorted, distinct flat indices into a tensor of some shape in the smallest form that fits them."""
    count = int(indices.size)
    if not count or int(indices[-1] - indices[0]) == count - 1:
        return Span(device, count, int(indices[0]) if count else 0)
    grid = _as_grid(indices, shape, device)
    if grid is not None:
        return grid
    if count <= SHORT:
        return Listed(device, count, torch.from_numpy(np.array(indices, dtype=np.int64)).to(device))
    if count * _DENSE >= math.prod(shape):
        mask = np.zeros(math.prod(shape), dtype=np.bool_)
        mask[indices] = True
        return Bits(device, count, torch.from_numpy(np.packbits(mask)).to(device))
    gaps = np.diff(indices, prepend=np.int64(0))
    narrow = next(kind for kind in _GAP_TYPES if gaps.max() <= torch.iinfo(kind).max)
    return Gaps(device, count, torch.from_numpy(gaps).to(narrow).to(device))


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
    return Grid(device, indices.size, (height, width), _axis(rows, device), _axis(columns, device))


def _axis(numbers: Indices, device: torch.device) -> Axis:
    first, last = int(numbers[0]), int(numbers[-1])
    successive = last - first == numbers.size - 1
    return slice(first, last + 1) if successive else torch.from_numpy(numbers).to(device)
