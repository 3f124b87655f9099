"""Entries of two tensors, held against each other piece by piece, in flat memory.

Entries are compared by their bits, so that a lost sign of zero or another not-a-number is a change too; how
large the changes are is computed in float64. Both files are read once, a piece at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Totals, parts_of, pieces_of
from surgeon.checkpoint.storage import DTYPE_BITS, NUMPY_DTYPES, TensorInfo, read_pieces
from surgeon.region.dimensions import along
from surgeon.region.mask import Indices, Mask

CHUNK = 1 << 20  # entries held of each checkpoint, per thread; a multiple of eight, so that masks pack
_BLOCK = 1 << 13  # entries whose squares are summed at a time, in the processor's cache


@dataclass(frozen=True)
class Change(Totals):
    """Totals over some entries.

    `entries` were compared, `changed` differ. Of these `zeroed` became zero, `sign_flips` changed their sign,
    `not_finite` have no finite difference and are left out of `delta_square` (the sum of squared differences)
    and `largest` (the largest absolute difference). `base_square` is the sum of the first checkpoint's
    squares over all entries compared.
    """

    entries: int = 0
    changed: int = 0
    zeroed: int = 0
    sign_flips: int = 0
    not_finite: int = 0
    delta_square: float = 0.0
    base_square: float = 0.0
    largest: float = 0.0

    @property
    def l2(self) -> float:
        """Euclidean length of the difference."""
        return math.sqrt(self.delta_square)

    @property
    def relative(self) -> float | None:
        """`l2` as a share of the first checkpoint's length; None where that is zero or not finite."""
        if not self.base_square or not math.isfinite(self.base_square):
            return None
        return math.sqrt(self.delta_square / self.base_square)


def total(changes: Iterable[Change]) -> Change:
    """Add changes up."""
    return sum(changes, Change())


def chunks(
    before: TensorInfo, after: TensorInfo
) -> Iterator[tuple[int, NDArray[Any], NDArray[Any], NDArray[np.bool_]]]:
    """Yield (first flat index, entries before, entries after, where they differ), piece by piece.

    Entries of dtypes that share bytes are compared byte by byte. Between different dtypes values are compared.
    """
    infos = (before, after)
    known = all(info.dtype in NUMPY_DTYPES for info in infos)
    if known:
        step = _step(infos)
        readers: Sequence[Iterator[NDArray[Any]]] = [pieces_of(info, step) for info in infos]
    else:
        step, length = CHUNK, min(info.nbytes for info in infos)
        readers = [(piece.view("V1") for piece in read_pieces(info, step, length)) for info in infos]
    start = 0
    for left, right in zip(*readers, strict=True):
        if before.dtype == after.dtype or not known:
            bits = f"u{min(left.itemsize, 8)}"
            differ = left.view(bits) != right.view(bits)
        else:
            old, new = left.astype(np.float64), right.astype(np.float64)
            differ = (old != new) & ~(np.isnan(old) & np.isnan(new))
        yield start, left, right, differ
        start += left.size


def _step(infos: Sequence[TensorInfo]) -> int:
    """Return how many entries to hold of each: about as many as a codec likes best, a multiple of eight."""
    liked = [info.codec.piece(info) for info in infos if isinstance(info, Coded)]
    return math.lcm(liked[0], 8) if liked else CHUNK


def stored_changes(before: TensorInfo, after: TensorInfo) -> tuple[int, int] | None:
    """Count the codes, and the other stored values, such as scales, that differ between two quantized tensors.

    None if not both are quantized in the same way.
    """
    if not (isinstance(before, Coded) and isinstance(after, Coded) and before.codec == after.codec):
        return None
    pairs = list(zip(parts_of(before), parts_of(after), strict=False))
    if any((one.dtype, one.shape) != (other.dtype, other.shape) for one, other in pairs):
        return None
    counts = [
        _count_stored(one, other, before.codec.code_bits if number == 0 else None)
        for number, (one, other) in enumerate(pairs)
    ]
    return counts[0], sum(counts[1:])


def _count_stored(before: TensorInfo, after: TensorInfo, bits: int | None) -> int:
    """Count the entries of two stored tensors that differ; of `bits` each, of which some share a word."""
    width = DTYPE_BITS[before.dtype] // 8 or 1
    total = 0
    for left, right in zip(read_pieces(before, CHUNK), read_pieces(after, CHUNK), strict=True):
        differ = left ^ right
        if bits is not None and 8 % bits == 0:
            parts = range(0, 8, bits)
            total += sum(int(np.count_nonzero(differ >> np.uint8(at) & (1 << bits) - 1)) for at in parts)
        else:
            total += int(np.count_nonzero(differ.reshape(-1, width).any(axis=1)))
    return total


def measure(left: NDArray[Any], right: NDArray[Any], at: Indices) -> Change:
    """Total up a piece of both checkpoints whose entries differ at positions `at`."""
    if left.dtype.kind == "c" or left.dtype.type is np.void:  # complex numbers and bare bytes have no magnitudes
        return Change(entries=left.size, changed=at.size)
    with np.errstate(all="ignore"):  # infinities are the user's, and counted below
        base_square = _square(left)
        if not at.size:
            return Change(entries=left.size, base_square=base_square)
        old, new = left[at].astype(np.float64), right[at].astype(np.float64)
        delta = new - old
        finite = np.isfinite(delta)
        delta = delta[finite]
        return Change(
            entries=left.size,
            changed=at.size,
            zeroed=int(np.count_nonzero((new == 0) & (old != 0))),
            sign_flips=int(np.count_nonzero(np.sign(old) * np.sign(new) < 0)),
            not_finite=at.size - delta.size,
            delta_square=float(np.dot(delta, delta)),
            base_square=base_square,
            largest=float(np.abs(delta).max(initial=0.0)),
        )


def _square(values: NDArray[Any]) -> float:
    """Return the sum of the squares in float64, over blocks that stay in the processor's cache.

    Narrow types go by way of float32, which holds all that they hold: straight to float64 is many times as slow.
    """
    result = 0.0
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        wide = (block.astype(np.float32) if block.itemsize < 4 else block).astype(np.float64)
        result += float(np.dot(wide, wide))
    return result


class Counter:
    """Counts changed entries per row, column and residual dimension of one tensor."""

    def __init__(self, shape: tuple[int, ...], axis: int | None) -> None:
        self.shape, self.axis = shape, axis
        matrix = len(shape) > 1
        self.rows = np.zeros(math.prod(shape[:-1]) if matrix else 0, dtype=np.int64)
        self.columns = np.zeros(shape[-1] if matrix else 0, dtype=np.int64)
        self.hits = np.zeros(shape[axis], dtype=np.int64) if axis is not None else None

    def add(self, indices: Indices) -> None:
        """Count changed entries by their sorted flat indices."""
        if not indices.size:
            return
        if self.rows.size:
            rows = indices // self.columns.size
            counts = np.bincount(rows - rows[0])
            self.rows[rows[0] : rows[0] + counts.size] += counts
            self.columns += np.bincount(indices % self.columns.size, minlength=self.columns.size)
        if self.axis is not None and self.hits is not None:
            self.hits += np.bincount(along(indices, self.shape, self.axis), minlength=self.hits.size)


def reader(mask: Mask | None) -> Callable[[int, int], Indices]:
    """Return a function of (start, count) that gives the selected entries of a piece, counted from its start."""
    if mask is None:
        return lambda start, count: np.empty(0, dtype=np.int64)
    if mask.encoding == "bits":
        return lambda start, count: np.flatnonzero(np.unpackbits(mask.data[start // 8 :], count=count))
    indices = mask.indices()

    def read(start: int, count: int) -> Indices:
        low, high = np.searchsorted(indices, (start, start + count))
        return indices[low:high] - start

    return read


def fullest(counts: NDArray[np.int64], top: int = 3) -> tuple[tuple[int, int], ...]:
    """Return the largest counts with their indices, as (index, count); zeros are left out."""
    order = np.argsort(-counts, kind="stable")[:top]
    return tuple((int(i), int(counts[i])) for i in order if counts[i])
