"""Codes of a few bits, side by side in words of 32 bits, the first in the lowest bits; one may lie across two words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Indices, Stored
from surgeon.checkpoint.storage import TensorInfo
from surgeon.formats.base import StoredEdit
from surgeon.formats.places import distinct, gathered


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
        found, which = distinct(np.concatenate([self.words, self.words[across] + self.step]))
        low, high = which[: self.words.size], which[self.words.size :]
        change = (self.read(read, info) ^ codes.astype(np.uint8)).astype(np.uint64) << self.shifts.astype(np.uint64)
        changes = np.zeros(found.size, np.uint32)  # no two of one word have a bit in common, so that a sum is both
        np.add.at(changes, low, change.astype(np.uint32))
        np.add.at(changes, high, (change[across] >> np.uint64(32)).astype(np.uint32))
        return StoredEdit(found, (read.entries(info, found).view(np.uint32) ^ changes).view(np.int32))

    def _across(self) -> NDArray[np.bool_]:
        """True for codes that go on in the next word."""
        across: NDArray[np.bool_] = self.shifts + self.bits > 32
        return across


def halves(read: Stored, info: TensorInfo, at: Indices, *, high_first: bool = False) -> NDArray[np.uint8]:
    """Return codes of four bits, two a byte, by their places in any order; the first of a byte in its low half."""
    found: NDArray[np.uint8] = gathered(read, info, at // 2) >> _shifts(at, high_first) & np.uint8(15)
    return found


def with_halves(
    read: Stored, info: TensorInfo, at: Indices, codes: NDArray[np.uint8], *, high_first: bool = False
) -> StoredEdit:
    """Return the edit of bytes that puts codes there, each place once; the other half of a byte stays."""
    found, which = distinct(at // 2)
    data, changes = read.entries(info, found), np.zeros(found.size, np.uint8)
    shifts = _shifts(at, high_first)
    np.add.at(changes, which, ((data[which] >> shifts & np.uint8(15)) ^ codes) << shifts)
    return StoredEdit(found, data ^ changes)


def _shifts(at: Indices, high_first: bool) -> NDArray[np.uint8]:
    return ((at + high_first) % 2 * 4).astype(np.uint8)


def unpacked(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """Return the first `count` codes of each row of words; shape (rows, count)."""
    rows = words.shape[0]
    data = np.ascontiguousarray(words).view(np.uint8).reshape(rows, -1)
    if bits == 8:
        return data[:, :count]
    if bits == 4:
        return np.stack([data & 15, data >> 4], axis=-1).reshape(rows, -1)[:, :count]
    single = np.unpackbits(data, axis=1, bitorder="little")[:, : count * bits]
    return np.packbits(single.reshape(rows, count, bits), axis=2, bitorder="little").reshape(rows, count)
