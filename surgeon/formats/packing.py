"""Entries of stored tensors by flat indices in any order, and codes of a few bits in their bytes and words.

Codes lie side by side in words of 32 bits, the first in the lowest bits; one may lie across two words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Indices, Stored, StoredEdit
from surgeon.checkpoint.storage import TensorInfo

_READ, _MARKED = 8, 4  # a range is worth it up to so many times the entries in it


def gathered(read: Stored, info: TensorInfo, at: Indices) -> NDArray[Any]:
    """Return entries by flat indices in any order, some perhaps more than once; shape (n,), in the stored dtype.

    Where they lie close together all between them is read, which is faster than to sort them.
    """
    values: NDArray[Any]
    if at.size and int(np.ptp(at)) < _READ * at.size:
        first = int(at.min())
        values = read.span(info, first, int(at.max()) + 1)[at - first]
    else:
        numbers, which = np.unique(at, return_inverse=True)
        values = read.entries(info, numbers)[which]
    return values


def distinct(at: Indices) -> tuple[Indices, Indices]:
    """Return what `np.unique` with its inverse returns, without sorting where the numbers lie close together."""
    if not at.size or int(np.ptp(at)) >= _MARKED * at.size:
        numbers, which = np.unique(at, return_inverse=True)
        return numbers, which
    first = int(at.min())
    marks = np.zeros(int(at.max()) - first + 1, dtype=bool)
    marks[at - first] = True
    return np.flatnonzero(marks) + first, (np.cumsum(marks) - 1)[at - first]


def united(read: Stored, info: TensorInfo, edits: Sequence[StoredEdit]) -> StoredEdit:
    """Return one edit for several of the same tensor, no two of which change the same bit."""
    if len(edits) == 1:
        return edits[0]
    at = np.concatenate([edit.indices for edit in edits])
    order = np.argsort(at, kind="stable")
    at, values = at[order], np.concatenate([edit.values for edit in edits])[order]
    first = np.flatnonzero(np.diff(at, prepend=-1))
    if first.size == at.size:
        return StoredEdit(at, values)
    bits, once = f"u{values.dtype.itemsize}", at[first]
    before = read.entries(info, once).view(bits)
    changed = values.view(bits) ^ np.repeat(before, np.diff(first, append=at.size))
    return StoredEdit(once, (before ^ np.bitwise_xor.reduceat(changed, first)).view(values.dtype))


@dataclass(frozen=True)
class Places:
    """Where codes of `bits` bits lie: flat indices of words, the lowest bit in them, and how far the next word is."""

    words: Indices
    shifts: Indices
    bits: int
    step: int = 1

    def read(self, read: Stored, info: TensorInfo) -> NDArray[np.uint8]:
        """Return the codes, in any order; shape (n,)."""
        words = gathered(read, info, self.words).view(np.uint32)
        most = np.uint32((1 << self.bits) - 1)
        across = self._across()
        if not across.any():
            return (words >> self.shifts.astype(np.uint32) & most).astype(np.uint8)
        both = words.astype(np.uint64)
        rest = gathered(read, info, self.words[across] + self.step).view(np.uint32)
        both[across] |= rest.astype(np.uint64) << np.uint64(32)
        return (both >> self.shifts.astype(np.uint64) & np.uint64(most)).astype(np.uint8)

    def edit(self, read: Stored, info: TensorInfo, codes: NDArray[Any]) -> StoredEdit:
        """Return the edit of the words that puts codes there; places are in any order, each there once."""
        across = self._across()
        words, which = distinct(np.concatenate([self.words, self.words[across] + self.step]))
        low, high = which[: self.words.size], which[self.words.size :]
        change = (self.read(read, info) ^ codes.astype(np.uint8)).astype(np.uint64) << self.shifts.astype(np.uint64)
        changes = np.zeros(words.size, np.uint32)  # no two of one word have a bit in common, so that a sum is both
        np.add.at(changes, low, change.astype(np.uint32))
        np.add.at(changes, high, (change[across] >> np.uint64(32)).astype(np.uint32))
        return StoredEdit(words, (read.entries(info, words).view(np.uint32) ^ changes).view(np.int32))

    def _across(self) -> NDArray[np.bool_]:
        """True for codes that go on in the next word."""
        across: NDArray[np.bool_] = self.shifts + self.bits > 32
        return across


def halves(read: Stored, info: TensorInfo, at: Indices, *, high_first: bool = False) -> NDArray[np.uint8]:
    """Return codes of four bits, two a byte, by their places in any order; the first of a byte in its low half."""
    codes: NDArray[np.uint8] = gathered(read, info, at // 2) >> _shifts(at, high_first) & np.uint8(15)
    return codes


def with_halves(
    read: Stored, info: TensorInfo, at: Indices, codes: NDArray[np.uint8], *, high_first: bool = False
) -> StoredEdit:
    """Return the edit of bytes that puts codes there, each place once; the other half of a byte stays."""
    places, which = distinct(at // 2)
    data, changes = read.entries(info, places), np.zeros(places.size, np.uint8)
    shifts = _shifts(at, high_first)
    np.add.at(changes, which, ((data[which] >> shifts & np.uint8(15)) ^ codes) << shifts)
    return StoredEdit(places, data ^ changes)


def _shifts(at: Indices, high_first: bool) -> NDArray[np.uint8]:
    return ((at + high_first) % 2 * 4).astype(np.uint8)


def pairs(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the two codes of four bits of each byte, the one in the low half first, along a new last axis."""
    return np.stack([data & 15, data >> 4], axis=-1)


def unpacked(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """Return the first `count` codes of each row of words; shape (rows, count)."""
    rows = words.shape[0]
    data = np.ascontiguousarray(words).view(np.uint8).reshape(rows, -1)
    if bits == 8:
        return data[:, :count]
    if bits == 4:
        return pairs(data).reshape(rows, -1)[:, :count]
    single = np.unpackbits(data, axis=1, bitorder="little")[:, : count * bits]
    return np.packbits(single.reshape(rows, count, bits), axis=2, bitorder="little").reshape(rows, count)
