"""Codes of a few bits, side by side in words of 32 bits, the first in the lowest bits; one may lie across two words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Indices, Stored
from surgeon.checkpoint.storage import TensorInfo
from surgeon.formats.base import StoredEdit


@dataclass(frozen=True)
class Places:
    """Where codes of `bits` bits lie: flat indices of words, the lowest bit in them, and how far the next word is."""

    words: Indices
    shifts: Indices
    bits: int
    step: int = 1

    def read(self, read: Stored, info: TensorInfo) -> NDArray[np.uint8]:
        """Return the codes, in any order; shape (n,)."""
        distinct, which = np.unique(self._both(info), return_inverse=True)
        words = read.entries(info, distinct).view(np.uint32).astype(np.uint64)
        low, high = words[which.reshape(2, -1)]
        codes: NDArray[np.uint8] = (low | high << np.uint64(32)) >> self.shifts.astype(np.uint64) & self._mask
        return codes.astype(np.uint8)

    def edit(self, read: Stored, info: TensorInfo, codes: NDArray[Any]) -> StoredEdit:
        """Return the edit of the words that puts codes there; places are in any order, each there once."""
        both, shifts = self._both(info), self.shifts.astype(np.uint64)
        distinct, which = np.unique(both, return_inverse=True)
        low, high = which.reshape(2, -1)
        words = read.entries(info, distinct).view(np.uint32).copy()
        keep, put = ~(self._mask << shifts), codes.astype(np.uint64) << shifts
        across = self.shifts + self.bits > 32
        for part, at in ((np.uint64(0), low), (np.uint64(32), high)):
            chosen = slice(None) if not part else across
            np.bitwise_and.at(words, at[chosen], (keep[chosen] >> part).astype(np.uint32))
            np.bitwise_or.at(words, at[chosen], (put[chosen] >> part).astype(np.uint32))
        used = np.zeros(distinct.size, bool)
        used[low] = used[high[across]] = True
        return StoredEdit(distinct[used], words[used].view(np.int32))

    @property
    def _mask(self) -> np.uint64:
        return np.uint64((1 << self.bits) - 1)

    def _both(self, info: TensorInfo) -> Indices:
        """Return the word of each code and that of its rest, which is the same one where there is no rest."""
        rest = np.where(self.shifts + self.bits > 32, self.words + self.step, self.words)
        return np.concatenate([self.words, np.minimum(rest, info.numel - 1)])


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
