"""Formats in which a weight is a code times the scale of its block: what they share, each says the rest.

New values keep the stored scale of their block where they fit it. A block that one of them does not fit gets its scale
doubled until they do, and all of its codes are made anew; for floating-point codes that keeps the untouched entries as
they are, unless they become smaller than the smallest normal code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Codec, Coded, Encoded, Indices, Rounding, Stored, StoredEdit, rounded
from surgeon.checkpoint.storage import NUMPY_DTYPES
from surgeon.errors import InputError
from surgeon.formats.base import require_scales
from surgeon.formats.packing import distinct, halves, united, with_halves

AT_ONCE = 1 << 20  # entries that are worked on: some tens of megabytes, however large a tensor is
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)
_NUMBERS = np.arange(16, dtype=np.uint8).view(_E2M1).astype(np.float32)


@dataclass(frozen=True)
class Extremes:
    """Blocks, sorted and each once, their stored scales, and the lowest and highest value that each is to hold."""

    blocks: Indices
    scales: NDArray[np.float64]
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]

    @property
    def largest(self) -> NDArray[np.float64]:
        """The largest magnitude that each block is to hold."""
        largest: NDArray[np.float64] = np.maximum(-self.lowest, self.highest)
        return largest


@dataclass(frozen=True)
class ScaledBlocks(Codec):
    """Base of formats with codes and scales. Codes and blocks are counted as the format likes, from 0."""

    limit: ClassVar[float]  # the largest magnitude of a number that is rounded to a code: beyond, a scale is too small

    def run(self, tensor: Coded) -> int:
        """Return how many entries, one behind the other, are a block; here a row."""
        return tensor.shape[-1]

    def piece(self, tensor: Coded) -> int:
        """Return whole rows, about a million entries."""
        return tensor.shape[-1] * max(1, AT_ONCE // tensor.shape[-1])

    def locate(self, tensor: Coded, read: Stored, indices: Indices) -> tuple[Indices, Indices]:
        """Return where the codes of logical entries are, and the numbers of their blocks; in the order given."""
        return indices, indices // self.run(tensor)

    def members(self, tensor: Coded, read: Stored, blocks: Indices) -> Indices:
        """Return all logical entries of some blocks, sorted."""
        run = self.run(tensor)
        every = (blocks[:, None] * run + np.arange(run)).reshape(-1)
        return every[every < tensor.numel]

    @abstractmethod
    def codes(self, tensor: Coded, read: Stored, at: Indices) -> NDArray[Any]:
        """Return codes by their places, in any order; shape (n,)."""

    def with_codes(self, tensor: Coded, read: Stored, at: Indices, codes: NDArray[Any]) -> dict[str, StoredEdit]:
        """Return the edits of stored tensors that put codes at their places, which are in any order, each once."""
        order = np.argsort(at, kind="stable")
        return {tensor.codes.name: StoredEdit(at[order], codes[order].view(NUMPY_DTYPES[tensor.codes.dtype]))}

    @abstractmethod
    def numbers(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the numbers that codes stand for, before the scale."""

    @abstractmethod
    def nearest(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[Any]:
        """Return the codes of the nearest numbers, ties to even, all of which fit; each has its block."""

    def fits(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[np.bool_]:
        """Tell which numbers round to a code of their block and which are too large."""
        return np.abs(numbers) <= self.limit

    def enlarged(self, tensor: Coded, read: Stored, asked: Extremes) -> NDArray[np.float64]:
        """Return scales in which the lowest and the highest value of each block fit: doubled until they do.

        Raises:
            InputError: none is large enough.
        """
        needed = asked.largest / (self.limit * asked.scales)
        return asked.scales * 2.0 ** np.maximum(0, np.ceil(np.log2(np.maximum(needed, 1.0))))

    def scales(self, tensor: Coded, read: Stored, blocks: Indices) -> NDArray[np.float32]:
        """Return the scales of blocks, which are sorted and each there once.

        Raises:
            CheckpointError: one is none.
        """
        return self.widened(tensor, read, read.entries(tensor.parts["scales"], blocks))

    def widened(self, tensor: Coded, read: Stored, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Return stored scales in float32; those in U8 are powers of two.

        Raises:
            CheckpointError: one is none.
        """
        values: NDArray[np.float32] = (stored.view(_E8M0) if stored.dtype == np.uint8 else stored).astype(np.float32)
        require_scales(tensor, tensor.parts["scales"], values)
        return values

    def with_scales(
        self, tensor: Coded, read: Stored, blocks: Indices, scales: NDArray[np.float64]
    ) -> dict[str, StoredEdit]:
        """Return the edits of stored tensors that give blocks, sorted and each once, other scales.

        Raises:
            InputError: a scale is too large for the stored dtype.
        """
        info = tensor.parts["scales"]
        with np.errstate(over="ignore", invalid="ignore"):
            narrowed = scales.astype(np.float32).astype(_E8M0 if info.dtype == "U8" else NUMPY_DTYPES[info.dtype])
        if not np.isfinite(narrowed.astype(np.float64)).all():
            raise InputError(f"new values of tensor '{tensor.name}' need a scale too large for {info.dtype}")
        return {info.name: StoredEdit(blocks, narrowed.view(NUMPY_DTYPES[info.dtype]))}

    def decode(self, tensor: Coded, read: Stored, start: int, stop: int) -> NDArray[Any]:
        """Return the entries of a range; formats that can do it faster do."""
        return self.entries(tensor, read, np.arange(start, stop, dtype=np.int64))

    def entries(self, tensor: Coded, read: Stored, indices: Indices) -> NDArray[Any]:
        """Return codes times scales, multiplied in float32 and rounded to the logical dtype."""
        values = np.empty(indices.size, NUMPY_DTYPES[tensor.dtype])
        for part in _parts(indices.size, AT_ONCE):
            at, blocks = self.locate(tensor, read, indices[part])
            values[part] = self._values(tensor, self.codes(tensor, read, at), self._scales(tensor, read, blocks))
        return values

    def _values(self, tensor: Coded, codes: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            return (self.numbers(codes) * scales).astype(NUMPY_DTYPES[tensor.dtype])

    def _scales(self, tensor: Coded, read: Stored, blocks: Indices) -> NDArray[np.float32]:
        numbers, which = distinct(blocks)
        return self.scales(tensor, read, numbers)[which]

    def encode(self, tensor: Coded, read: Stored, indices: Indices, values: NDArray[np.float64]) -> Encoded:
        """Encode with the stored scale of each block where the new values fit, else with a doubled one."""
        at, blocks = self.locate(tensor, read, indices)
        codes, scales = self.codes(tensor, read, at), self._scales(tensor, read, blocks)
        before = self._values(tensor, codes, scales)
        asked = _differ(before, values)
        if not asked.any():
            return Encoded({}, indices, before)
        self._require_codes(tensor, values[asked])
        with np.errstate(divide="ignore", invalid="ignore"):  # bitsandbytes has scales that are zero
            numbers = values / scales
        fits = self.fits(tensor, read, numbers, blocks)
        rescaled = np.unique(blocks[asked & ~fits])
        touched = np.unique(blocks[asked])
        outgrown = np.isin(blocks, rescaled)
        fitting = asked & ~outgrown
        new = codes.copy()
        new[fitting] = self.nearest(tensor, read, numbers[fitting], blocks[fitting])
        after = self._values(tensor, new, scales)
        rounding = _rounding(after[fitting], values[fitting]) + Rounding(touched.size, rescaled.size)
        edits = self.with_codes(tensor, read, at[fitting], new[fitting]) if fitting.any() else {}
        unscaled = Encoded(edits, indices[~outgrown], after[~outgrown], rounding)
        del at, blocks, codes, scales, before, numbers, new, after
        chosen = asked & outgrown
        return _together(
            tensor, read, [unscaled, *self._rescaled(tensor, read, rescaled, indices[chosen], values[chosen])]
        )

    def _rescaled(
        self, tensor: Coded, read: Stored, blocks: Indices, indices: Indices, wanted: NDArray[np.float64]
    ) -> Iterator[Encoded]:
        """Make blocks anew with scales in which everything fits: the entries that were asked for, and the others.

        Some blocks at a time, and of large ones some entries, so that the work takes less memory than what comes of it.
        """
        none = np.empty(0, np.int64), np.empty(0, NUMPY_DTYPES[tensor.dtype])
        for some in _parts(blocks.size, AT_ONCE * self.blocks(tensor) // tensor.numel):
            batch = blocks[some]
            every = self.members(tensor, read, batch)
            pieces = [every[part] for part in _parts(every.size, AT_ONCE)]
            lowest, highest = np.zeros(batch.size), np.zeros(batch.size)
            for piece in pieces:
                held = self._held(tensor, read, batch, piece, indices, wanted)
                finite = np.where(np.isfinite(held.values), held.values, 0.0)
                np.minimum.at(lowest, held.number, finite)
                np.maximum.at(highest, held.number, finite)
            stored = self.scales(tensor, read, batch).astype(np.float64)
            scale = self.enlarged(tensor, read, Extremes(batch, stored, lowest, highest))
            yield Encoded(self.with_scales(tensor, read, batch, scale), *none)
            for piece in pieces:
                if len(pieces) > 1:
                    held = self._held(tensor, read, batch, piece, indices, wanted)
                new = self.nearest(tensor, read, held.values / scale[held.number], batch[held.number])
                with np.errstate(over="ignore"):
                    after = self._values(tensor, new, scale.astype(np.float32)[held.number])
                edits = self.with_codes(tensor, read, held.at, new)
                yield Encoded(edits, piece, after, _rounding(after, held.before))

    def _held(
        self,
        tensor: Coded,
        read: Stored,
        blocks: Indices,
        piece: Indices,
        indices: Indices,
        wanted: NDArray[np.float64],
    ) -> _Held:
        """Return what entries `piece` of some blocks are to hold: some have new values, the others what they have."""
        at, owner = self.locate(tensor, read, piece)
        owners, which = distinct(owner)
        codes, scales = self.codes(tensor, read, at), self.scales(tensor, read, owners)[which]
        before = self._values(tensor, codes, scales).astype(np.float64)
        values = self.numbers(codes).astype(np.float64) * scales
        first, last = np.searchsorted(indices, [piece[0], piece[-1] + 1])
        near = slice(first, last)
        to = np.searchsorted(piece, indices[near])
        here = piece[to] == indices[near]
        values[to[here]] = before[to[here]] = wanted[near][here]
        return _Held(at, np.searchsorted(blocks, owners)[which], values, before)

    def _require_codes(self, tensor: Coded, values: NDArray[np.float64]) -> None:
        wrong = values[~np.isfinite(values)]
        if wrong.size:
            raise InputError(
                f"tensor '{tensor.name}': {wrong.size} new values are not finite ({wrong[0]:g}), and codes with scales "
                "hold no such; use other values"
            )


@dataclass(frozen=True)
class _Held:
    """Entries to encode: where their codes are, which of the blocks in question each is in, and their values.

    `before` are the values that encoding is measured by: in the logical dtype, but for new ones.
    """

    at: Indices
    number: Indices
    values: NDArray[np.float64]
    before: NDArray[np.float64]


def _parts(size: int, step: int) -> Iterator[slice]:
    step = max(step, 1)
    return (slice(start, start + step) for start in range(0, size, step))


def _together(tensor: Coded, read: Stored, parts: Sequence[Encoded]) -> Encoded:
    """Put parts of an edit together; codes of several may share a byte or word."""
    if len(parts) == 1:
        return parts[0]
    infos = {part.name: part for part in tensor.parts.values()}
    edits = {name: [part.stored[name] for part in parts if name in part.stored] for name in infos}
    stored = {name: united(read, infos[name], some) for name, some in edits.items() if some}
    indices = np.concatenate([part.indices for part in parts])
    order = np.argsort(indices, kind="stable")
    values = np.concatenate([part.values for part in parts])
    return Encoded(stored, indices[order], values[order], sum((part.rounding for part in parts), Rounding()))


def nearest_float(numbers: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """Return the codes, a byte each, of the nearest numbers of a float of at most eight bits; larger ones are cut."""
    most = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return rounded(np.clip(numbers, -most, most), dtype).view(np.uint8)


def _differ(before: NDArray[Any], wanted: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True where a value is to become another one, by bits; one not-a-number is as good as another."""
    old = before.astype(np.float64)
    equal: NDArray[np.bool_] = (old == wanted) & (np.signbit(old) == np.signbit(wanted))
    return ~(equal | np.isnan(old) & np.isnan(wanted))


def _rounding(after: NDArray[Any], wanted: NDArray[np.float64]) -> Rounding:
    with np.errstate(invalid="ignore", over="ignore"):
        error = after.astype(np.float64) - wanted
    error = error[np.isfinite(error)]
    largest = float(np.abs(error).max(initial=0.0))
    return Rounding(rounded=int(np.count_nonzero(error)), largest=largest, square=float(error @ error))


@dataclass(frozen=True)
class E2M1(ScaledBlocks):
    """Base of formats whose codes are E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives; two a byte, the first below."""

    code_bits: ClassVar[int] = 4
    limit: ClassVar[float] = 7.0  # half-way from 6, the largest code, to what would come next

    def codes(self, tensor: Coded, read: Stored, at: Indices) -> NDArray[np.uint8]:
        """Return halves of bytes."""
        return halves(read, tensor.codes, at)

    def with_codes(self, tensor: Coded, read: Stored, at: Indices, codes: NDArray[Any]) -> dict[str, StoredEdit]:
        """Return the edit of whole bytes, of which the other half may stay."""
        return {tensor.codes.name: with_halves(read, tensor.codes, at, codes)}

    def numbers(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the numbers of E2M1."""
        numbers: NDArray[np.float32] = _NUMBERS[codes]
        return numbers

    def nearest(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[np.uint8]:
        """Round to E2M1: half-way goes to the even code."""
        return nearest_float(numbers, _E2M1) & np.uint8(0x0F)
