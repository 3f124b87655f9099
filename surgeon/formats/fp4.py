"""FP4 (E2M1) in groups along the inputs, two codes a byte, the first in the low half: NVFP4 and packed MXFP4.

NVFP4 has a scale in E4M3 per group of 16 and one of the tensor, which compressed-tensors divides by
(`weight_packed`, `weight_scale`, `weight_global_scale`) and ModelOpt multiplies with (`weight`, `weight_scale`,
`weight_scale_2`). MXFP4 of compressed-tensors has powers of two per group of 32, in U8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored
from surgeon.checkpoint.storage import NUMPY_DTYPES, TensorInfo
from surgeon.errors import InputError
from surgeon.formats.base import StoredEdit, coded, logical_dtype, require_scales
from surgeon.formats.beside import tensors_beside
from surgeon.formats.blocks import ScaledBlocks
from surgeon.formats.gptq import misfit, required
from surgeon.formats.packing import halves, with_halves
from surgeon.formats.said import COMPRESSED, require_method

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_NUMBERS = np.concatenate([_MAGNITUDES, -_MAGNITUDES])
_HALFWAY = (_MAGNITUDES[1:] + _MAGNITUDES[:-1]).astype(np.float64) / 2
_E4M3, _E8M0 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
_MOST = {_E4M3: 448.0, _E8M0: 2.0**127}
_PIECE = 1 << 20
_NAMES = {
    COMPRESSED: {"codes": "weight_packed", "scales": "weight_scale", "global": "weight_global_scale"},
    "modelopt": {"codes": "weight", "scales": "weight_scale", "global": "weight_scale_2"},
}


@dataclass(frozen=True)
class Fp4(ScaledBlocks):
    """Codes of E2M1 in groups of `wide`; `by` is the quantizer that they are named and scaled by."""

    kind: ClassVar[str] = "fp4"
    code_bits: ClassVar[int] = 4
    limit: ClassVar[float] = 7.0  # half-way from 6 to what would come next

    wide: int = 16
    by: str = COMPRESSED

    @property
    def multiplies(self) -> bool:
        """True if the scale of the tensor is multiplied with, as ModelOpt does."""
        return self.by == "modelopt"

    @classmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Claim `weight_packed` in U8, and `weight` in U8 with `weight_scale_2`.

        Raises:
            CheckpointError: tensors are missing, of another shape or dtype, or the config says another format.
        """
        if not settings:
            return []
        dtype, found = logical_dtype(config), []
        optimized = str(settings.get("quant_method")) == "modelopt"
        for name, info in stored.items():
            module, _, last = name.rpartition(".")
            if info.dtype != "U8" or len(info.shape) != 2:
                continue
            if last == "weight_packed":
                found.append(cls._claimed(module, COMPRESSED, dtype, settings, stored))
            elif last == "weight" and (f"{name}_scale_2" in stored or optimized):
                found.append(cls._claimed(module, "modelopt", dtype, settings, stored))
        return found

    @classmethod
    def _claimed(
        cls, module: str, by: str, dtype: str, settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> Coded:
        names = dict(_NAMES[by])
        codes, scales = stored[f"{module}.{names['codes']}"], stored.get(f"{module}.weight_scale")
        require_method(settings, (by,), codes, "FP4")
        if by == COMPRESSED and scales is not None and scales.dtype in ("U8", "F8_E8M0"):
            del names["global"]
        parts = required(stored, module, names, f"FP4 of {by}")
        scales, whole = parts["scales"], parts.get("global")
        (rows, half), wide = codes.shape, 16 if whole else 32
        if (
            not codes.numel
            or half * 2 % wide
            or scales.shape != (rows, half * 2 // wide)
            or scales.dtype not in (("F8_E4M3",) if whole else ("U8", "F8_E8M0"))
            or (whole is not None and (whole.numel, whole.dtype) != (1, "F32"))
        ):
            raise misfit(parts, f"FP4 in groups of {wide}")
        parts |= tensors_beside(stored, module)
        return coded(cls(wide, by), f"{module}.weight", dtype, (rows, half * 2), parts)

    @property
    def words(self) -> str:
        """Name the format and its scales."""
        if self.wide == 32:
            return "MXFP4 (E2M1), a power of two per group of 32"
        return f"NVFP4 (E2M1) of {self.by}, a scale per group of 16 and one per tensor"

    def piece(self, tensor: Coded) -> int:
        """Return whole rows, about a million entries."""
        return tensor.shape[1] * max(1, _PIECE // tensor.shape[1])

    def decode(self, tensor: Coded, read: Stored, start: int, stop: int) -> NDArray[Any]:
        """Decode whole groups, and return the part of them that is asked for."""
        first, last = start // self.wide, -(-stop // self.wide)
        data = read.span(tensor.codes, first * self.wide // 2, last * self.wide // 2)
        codes = np.stack([data & 15, data >> 4], axis=-1).reshape(-1, self.wide)
        scales = self._float32(tensor, read, read.span(tensor.parts["scales"], first, last))
        values = self._values(tensor, codes, scales[:, None]).reshape(-1)
        return values[start - first * self.wide : stop - first * self.wide]

    def locate(self, tensor: Coded, read: Stored, indices: Indices) -> tuple[Indices, Indices]:
        """Codes lie as the entries do, and no group lies across rows."""
        return indices, indices // self.wide

    def members(self, tensor: Coded, read: Stored, blocks: Indices) -> Indices:
        """Return the entries of groups."""
        return (blocks[:, None] * self.wide + np.arange(self.wide)).reshape(-1)

    def codes(self, tensor: Coded, read: Stored, at: Indices) -> NDArray[np.uint8]:
        """Return the low or high half of bytes."""
        return halves(read, tensor.codes, at)

    def with_codes(self, tensor: Coded, read: Stored, at: Indices, codes: NDArray[Any]) -> dict[str, StoredEdit]:
        """Put codes into their halves of bytes; the other half stays."""
        return {tensor.codes.name: with_halves(read, tensor.codes, at, codes)}

    def numbers(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the numbers of E2M1."""
        found: NDArray[np.float32] = _NUMBERS[codes]
        return found

    def nearest(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[np.uint8]:
        """Round to E2M1: half-way goes to the even code."""
        size = np.abs(numbers)
        below = np.searchsorted(_HALFWAY, size, side="left")  # of two equally near the lower
        tie = (below < 7) & (size == _HALFWAY[np.minimum(below, 6)])
        code = below + (tie & (below % 2 == 1))
        found: NDArray[np.uint8] = (code + 8 * np.signbit(numbers)).astype(np.uint8)
        return found

    def scales(self, tensor: Coded, read: Stored, blocks: Indices) -> NDArray[np.float32]:
        """Return the scales of groups with that of the tensor in them."""
        return self._float32(tensor, read, read.entries(tensor.parts["scales"], blocks))

    def _float32(self, tensor: Coded, read: Stored, stored: NDArray[Any]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = (stored.view(_E8M0) if stored.dtype == np.uint8 else stored).astype(np.float32)
        require_scales(tensor, tensor.parts["scales"], values)
        with np.errstate(over="ignore", under="ignore"):
            made = values * self._whole(tensor, read) if self.multiplies else values / self._whole(tensor, read)
        require_scales(tensor, tensor.parts["scales"], made)
        return made

    def _whole(self, tensor: Coded, read: Stored) -> np.float32:
        info = tensor.parts.get("global")
        if info is None:
            return np.float32(1)
        value = read.span(info, 0, 1)
        require_scales(tensor, info, value)
        return np.float32(value[0])

    def enlarged(
        self,
        tensor: Coded,
        read: Stored,
        blocks: Indices,
        scales: NDArray[np.float64],
        lowest: NDArray[np.float64],
        highest: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Double the scales as long as the stored dtype has them, then take its largest one.

        Raises:
            InputError: that is not enough beside the scale of the tensor.
        """
        made = super().enlarged(tensor, read, blocks, scales, lowest, highest)
        info = tensor.parts["scales"]
        dtype = _E4M3 if info.dtype == "F8_E4M3" else _E8M0
        most = float(self._float32(tensor, read, np.array([_MOST[dtype]], dtype))[0])
        if (np.maximum(-lowest, highest) > self.limit * np.minimum(made, most)).any():
            raise InputError(
                f"new values of tensor '{tensor.name}' need a scale of their group that is too large for {info.dtype} "
                "beside the scale of the tensor; use smaller values, or `write: {dtype: bfloat16}`"
            )
        return np.minimum(made, most)

    def with_scales(
        self, tensor: Coded, read: Stored, blocks: Indices, scales: NDArray[np.float64]
    ) -> dict[str, StoredEdit]:
        """Take the scale of the tensor out again; rounding finds the stored scale that was meant."""
        info, whole = tensor.parts["scales"], float(self._whole(tensor, read))
        dtype = _E4M3 if info.dtype == "F8_E4M3" else _E8M0
        stored = (scales / whole if self.multiplies else scales * whole).astype(np.float32).astype(dtype)
        return {info.name: StoredEdit(blocks, stored.view(NUMPY_DTYPES[info.dtype]))}
