"""E2M1: floats of four bits, two codes a byte, the first in the low half: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored
from surgeon.formats.base import StoredEdit
from surgeon.formats.blocks import ScaledBlocks, nearest_float
from surgeon.formats.packing import halves, with_halves

_E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)
_NUMBERS = np.arange(16, dtype=np.uint8).view(_E2M1).astype(np.float32)


@dataclass(frozen=True)
class E2M1(ScaledBlocks):
    """Base of formats whose codes are E2M1."""

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
        found: NDArray[np.float32] = _NUMBERS[codes]
        return found

    def nearest(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[np.uint8]:
        """Round to E2M1: half-way goes to the even code."""
        return nearest_float(numbers, _E2M1) & np.uint8(0x0F)
