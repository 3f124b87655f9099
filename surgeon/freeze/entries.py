"""A set of a tensor's entries kept small, and what is done to a flat tensor at these places.

Two encodings: numbers (of entries, or of whole rows where the set is made of whole rows) and, for dense sets, one bit
per entry of the tensor. Bits become indices anew for each use, a piece of the tensor at a time. Numbers are int32; a
few are kept as torch wants them, in int64, since there what counts in a step is the number of calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from surgeon.region.mask import Indices

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ARE_BITS = frozenset(INTEGERS.values())
SHORT = 1024  # numbers or values that are kept as wide as they are used
_DENSE = 8  # from one entry in eight on, bits are both smaller than numbers and not slower
# Bytes of a mask that are taken at a time: the indices that they make stay in a processor's cache, or in small memory.
_PIECES = {"cpu": 1 << 14}
_PIECE = 1 << 22  # entries on a device: a kernel's start is little beside so many


def bits(tensor: Tensor) -> Tensor:
    """View a tensor as integers of the same width, so that a write or comparison is about bits."""
    return tensor if tensor.dtype in _ARE_BITS else tensor.view(INTEGERS[tensor.element_size()])


@dataclass(eq=False)
class Entries:
    """Flat indices into a tensor, in ascending order.

    `kept` holds numbers of units of `unit` successive entries (1, or the length of a row), or packed bits in the order
    of `numpy.packbits`, as `is_packed` says. `count` is the number of entries.
    """

    count: int
    kept: Tensor
    unit: int = 1
    is_packed: bool = False

    def indices(self) -> Tensor:
        """Return them as int64."""
        if self.is_packed:
            return _places(self.kept)
        numbers = self.kept.long()
        if self.unit == 1:
            return numbers
        return (numbers[:, None] * self.unit + torch.arange(self.unit, device=numbers.device)).view(-1)

    def select(self, flat: Tensor) -> Tensor:
        """Return the entries of `flat` at these places, in memory of their own."""
        if self.is_packed:
            found = [piece.index_select(0, _places(packed)) for piece, packed in self._pieces(flat)]
            return torch.cat(found).view(flat.dtype)
        return self._units(flat).index_select(0, self.kept).view(-1).view(flat.dtype)

    def write(self, flat: Tensor, values: Tensor) -> None:
        """Write values, of the dtype of `flat`, at these places, bit by bit."""
        source = bits(values)
        if not self.is_packed:
            numbers = self.kept.long()
            if self.unit == 1:
                bits(flat).scatter_(0, numbers, source)
            else:
                self._units(flat).index_copy_(0, numbers, source.view(-1, self.unit))
            return
        done = 0
        for piece, packed in self._pieces(flat):
            places = _places(packed)
            piece.scatter_(0, places, source[done : done + places.numel()])
            done += places.numel()

    def clear(self, flat: Tensor) -> None:
        """Set the entries at these places to positive zero."""
        if self.is_packed:  # integers times 0 there and 1 elsewhere, which needs no indices
            for piece, packed in self._pieces(flat):
                piece.mul_(_unpacked(~packed)[: piece.numel()])
        elif self.unit == 1:
            target = bits(flat)
            target.scatter_(0, self.kept.long(), target.new_zeros(self.count))  # much faster than index_fill_
        else:
            self._units(flat).index_fill_(0, self.kept.long(), 0)

    def on(self, device: torch.device) -> Entries:
        """Return the same set, kept on a device."""
        return self if self.kept.device == device else replace(self, kept=self.kept.to(device))

    def _units(self, flat: Tensor) -> Tensor:
        whole = bits(flat)
        return whole if self.unit == 1 else whole.view(-1, self.unit)

    def _pieces(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield parts of `flat`, as integers, with their parts of the mask."""
        target, step = bits(flat), _PIECES.get(flat.device.type, _PIECE)
        for start in range(0, self.kept.numel(), step):
            yield target[8 * start : 8 * (start + step)], self.kept[start : start + step]


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
    """Keep sorted, distinct flat indices into a tensor of some shape in the encoding that fits them."""
    count, size = int(indices.size), math.prod(shape)
    width = shape[-1] if len(shape) > 1 else 1
    rows = _whole_rows(indices, width) if width > 1 else None
    if rows is None and count > SHORT and count * _DENSE >= size:
        mask = np.zeros(size, dtype=np.bool_)
        mask[indices] = True
        return Entries(count, torch.from_numpy(np.packbits(mask)).to(device), is_packed=True)
    numbers, unit = (indices, 1) if rows is None else (rows, width)
    narrow = np.int32 if numbers.size > SHORT and size <= np.iinfo(np.int32).max else np.int64
    return Entries(count, torch.from_numpy(numbers.astype(narrow)).to(device), unit)


def _whole_rows(indices: Indices, width: int) -> Indices | None:
    """Return the numbers of the rows that the indices are all entries of; None if some row is there in part."""
    if indices.size % width or not indices.size:
        return None
    first, last = indices[::width], indices[width - 1 :: width]
    if (first % width).any() or (last - first != width - 1).any():
        return None
    return np.asarray(first // width)
