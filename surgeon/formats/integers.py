"""Formats in which a weight is a whole number times a scale: (code - zero point) * scale, groups along the inputs.

The zero point is itself a code, so that zero is exact. A block is what one output has of one group of inputs. A block
that a new value does not fit gets the smallest scale in which it does and keeps its zero point; its other codes are
rounded anew.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored, StoredEdit
from surgeon.checkpoint.storage import NUMPY_DTYPES
from surgeon.errors import CheckpointError, InputError
from surgeon.formats.blocks import AT_ONCE, Extremes, ScaledBlocks
from surgeon.formats.packing import Places

FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Integers(ScaledBlocks):
    """Base of formats of whole numbers. Codes are counted by logical index, blocks by the flat index of their scale.

    What stands for zero is taken off the codes that this class hands on: they are the numbers themselves.
    """

    limit: ClassVar[float] = np.inf  # each block has its own
    entries_at_once: ClassVar[int] = AT_ONCE

    bits: int

    @property
    def code_bits(self) -> int:  # type: ignore[override]
        """Bits of one code."""
        return self.bits

    @property
    def most(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def group_count(self, tensor: Coded) -> int:
        """Return how many groups the inputs are in; scales are (groups, outputs) unless a format says otherwise."""
        return tensor.parts["scales"].shape[0]

    def groups(self, tensor: Coded, read: Stored) -> Indices:
        """Return the group of every input, shape (columns,): as it is stored, else equal ones in order.

        Raises:
            CheckpointError: a group is none of those that have scales.
        """
        info, count = tensor.parts.get("order"), self.group_count(tensor)
        if info is None:
            return np.arange(tensor.shape[1]) // (tensor.shape[1] // count)
        groups = read.span(info, 0, info.numel).astype(np.int64)
        if groups.size and not 0 <= groups.min() <= groups.max() < count:
            raise CheckpointError(
                f"{info.path}: '{info.name}' puts an input of '{tensor.name}' into group {groups.max()} (lowest "
                f"{groups.min()}), but there are scales of {count} groups; fetch the file again"
            )
        return groups

    def block(self, tensor: Coded, row: Indices, group: Indices) -> Indices:
        """Return the flat index of the scale of a row's group."""
        return group * tensor.shape[0] + row

    def row_and_group(self, tensor: Coded, blocks: Indices) -> tuple[Indices, Indices]:
        """Return the row and group of blocks, the other way round."""
        group, row = np.divmod(blocks, tensor.shape[0])
        return row, group

    @abstractmethod
    def zeros(self, tensor: Coded, read: Stored, blocks: Indices) -> NDArray[np.int64]:
        """Return the codes that stand for zero in some blocks, in any order."""

    @abstractmethod
    def places(self, tensor: Coded, indices: Indices) -> Places:
        """Return where codes lie in words of 32 bits, by logical indices in any order."""

    def stored_codes(self, tensor: Coded, read: Stored, indices: Indices) -> NDArray[np.uint8]:
        """Return codes by logical indices, in any order."""
        return self.places(tensor, indices).read(read, tensor.codes)

    @abstractmethod
    def stored_rows(self, tensor: Coded, read: Stored, first: int, last: int) -> NDArray[np.uint8]:
        """Return the codes of some rows, shape (rows, columns)."""

    def with_stored(
        self, tensor: Coded, read: Stored, indices: Indices, codes: NDArray[np.uint8]
    ) -> dict[str, StoredEdit]:
        """Return the edits that put codes at logical indices."""
        return {tensor.codes.name: self.places(tensor, indices).edit(read, tensor.codes, codes)}

    def piece(self, tensor: Coded) -> int:
        """Return whole rows, about a million entries."""
        return tensor.shape[1] * max(1, self.entries_at_once // tensor.shape[1])

    def decode(self, tensor: Coded, read: Stored, start: int, stop: int) -> NDArray[Any]:
        """Decode whole rows, and return the part of them that is asked for."""
        width = tensor.shape[1]
        first, last = start // width, -(-stop // width)
        rows = np.arange(first, last)
        blocks = self.block(tensor, rows[:, None], np.arange(self.group_count(tensor))).reshape(-1)
        scales = self._scales(tensor, read, blocks).reshape(rows.size, -1)
        zeros = self.zeros(tensor, read, blocks).reshape(rows.size, -1).astype(np.float32)
        numbers = self.stored_rows(tensor, read, first, last).astype(np.float32)
        groups = self.groups(tensor, read)
        numbers -= zeros[:, groups]
        numbers *= scales[:, groups]
        return numbers.astype(NUMPY_DTYPES[tensor.dtype]).reshape(-1)[start - first * width : stop - first * width]

    def locate(self, tensor: Coded, read: Stored, indices: Indices) -> tuple[Indices, Indices]:
        """Codes go by logical index; the block is that of the row and the input's group."""
        row, column = np.divmod(indices, tensor.shape[1])
        return indices, self.block(tensor, row, self.groups(tensor, read)[column])

    def members(self, tensor: Coded, read: Stored, blocks: Indices) -> Indices:
        """Return the inputs of the blocks' groups in the blocks' rows."""
        rows, numbers = self.row_and_group(tensor, blocks)
        groups = self.groups(tensor, read)
        inputs, sizes = np.argsort(groups, kind="stable"), np.bincount(groups, minlength=self.group_count(tensor))
        many = sizes[numbers]
        # Where the inputs of each block begin, less where its entries begin in what is returned.
        begin = (np.cumsum(sizes) - sizes)[numbers] - (np.cumsum(many) - many)
        column = inputs[np.repeat(begin, many) + np.arange(many.sum())]
        return np.sort(np.repeat(rows * tensor.shape[1], many) + column)

    def codes(self, tensor: Coded, read: Stored, at: Indices) -> NDArray[np.int64]:
        """Return codes less the zero points."""
        return self.stored_codes(tensor, read, at) - self._zeros_at(tensor, read, at)

    def with_codes(self, tensor: Coded, read: Stored, at: Indices, codes: NDArray[Any]) -> dict[str, StoredEdit]:
        """Add the zero points again."""
        return self.with_stored(tensor, read, at, (codes + self._zeros_at(tensor, read, at)).astype(np.uint8))

    def _zeros_at(self, tensor: Coded, read: Stored, at: Indices) -> NDArray[np.int64]:
        return self.zeros(tensor, read, self.locate(tensor, read, at)[1])

    def numbers(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the numbers, which are there already."""
        return codes.astype(np.float32)

    def nearest(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[np.int64]:
        """Round to whole numbers within the range of the block."""
        zeros = self.zeros(tensor, read, blocks)
        return np.clip(np.rint(numbers), -zeros, self.most - zeros).astype(np.int64)

    def fits(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[np.bool_]:
        """A number fits that is no more than half a code beyond the range of its block."""
        zeros = self.zeros(tensor, read, blocks)
        return (numbers >= -zeros - 0.5) & (numbers <= self.most - zeros + 0.5)

    def enlarged(self, tensor: Coded, read: Stored, asked: Extremes) -> NDArray[np.float64]:
        """Return the smallest scales in the stored dtype in which the values fit.

        Raises:
            InputError: the zero point leaves no code for their sign.
        """
        zeros, lowest, highest = self.zeros(tensor, read, asked.blocks), asked.lowest, asked.highest
        if ((lowest < 0) & (zeros == 0) | (highest > 0) & (zeros == self.most)).any():
            raise InputError(
                f"tensor '{tensor.name}': a new value has a sign for which the zero point of its group leaves no code; "
                "use other values, or `write: {dtype: bfloat16}`"
            )
        below, above = np.maximum(zeros, 1), np.maximum(self.most - zeros, 1)
        needed = np.maximum(asked.scales, np.maximum(-lowest / below, highest / above))
        dtype = NUMPY_DTYPES[tensor.parts["scales"].dtype]
        scales = needed.astype(np.float32).astype(dtype)
        short = scales.astype(np.float64) < needed
        scales[short] = np.nextafter(scales[short], np.array(np.inf, dtype))
        return scales.astype(np.float64)
