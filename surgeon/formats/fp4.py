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

from surgeon.checkpoint.coded import Coded, Indices, Stored, StoredEdit
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import InputError
from surgeon.formats.base import (
    COMPRESSED,
    coded,
    logical_dtype,
    misfit,
    require_method,
    require_scales,
    required,
    tensors_beside,
)
from surgeon.formats.blocks import E2M1, Extremes
from surgeon.formats.packing import pairs

_E4M3, _E8M0 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
_MOST = {_E4M3: 448.0, _E8M0: 2.0**127}
_NAMES = {
    COMPRESSED: {"codes": "weight_packed", "scales": "weight_scale", "global": "weight_global_scale"},
    "modelopt": {"codes": "weight", "scales": "weight_scale", "global": "weight_scale_2"},
}


@dataclass(frozen=True)
class Fp4(E2M1):
    """Codes of E2M1 in groups of `wide`; `by` is the quantizer that they are named and scaled by."""

    kind: ClassVar[str] = "fp4"

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
        """Claim `weight_packed` in U8, and `weight` in U8 with `weight_scale_2`."""
        dtype, tensors = logical_dtype(config), []
        optimized = str(settings.get("quant_method")) == "modelopt"
        for name, info in stored.items():
            module, _, last = name.rpartition(".")
            if info.dtype != "U8" or len(info.shape) != 2:
                continue
            if last == "weight_packed":
                tensors.append(cls._claimed(module, COMPRESSED, dtype, settings, stored))
            elif last == "weight" and (f"{name}_scale_2" in stored or optimized):
                tensors.append(cls._claimed(module, "modelopt", dtype, settings, stored))
        return tensors

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

    def run(self, tensor: Coded) -> int:
        """Return the width of a group; none lies across rows."""
        return self.wide

    def decode(self, tensor: Coded, read: Stored, start: int, stop: int) -> NDArray[Any]:
        """Decode whole groups, and return the part of them that is asked for."""
        first, last = start // self.wide, -(-stop // self.wide)
        data = read.span(tensor.codes, first * self.wide // 2, last * self.wide // 2)
        codes = pairs(data).reshape(-1, self.wide)
        scales = self.widened(tensor, read, read.span(tensor.parts["scales"], first, last))
        values = self._values(tensor, codes, scales[:, None]).reshape(-1)
        return values[start - first * self.wide : stop - first * self.wide]

    def widened(self, tensor: Coded, read: Stored, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Return the scales of groups with that of the tensor in them."""
        values, whole = super().widened(tensor, read, stored), self._whole(tensor, read)
        with np.errstate(over="ignore", under="ignore"):
            scales = values * whole if self.multiplies else values / whole
        require_scales(tensor, tensor.parts["scales"], scales)
        return scales

    def _whole(self, tensor: Coded, read: Stored) -> np.float32:
        info = tensor.parts.get("global")
        if info is None:
            return np.float32(1)
        value = read.span(info, 0, 1)
        require_scales(tensor, info, value)
        return np.float32(value[0])

    def enlarged(self, tensor: Coded, read: Stored, asked: Extremes) -> NDArray[np.float64]:
        """Double the scales as long as the stored dtype has them, then take its largest one.

        Raises:
            InputError: that is not enough beside the scale of the tensor.
        """
        scales = super().enlarged(tensor, read, asked)
        info = tensor.parts["scales"]
        dtype = _E4M3 if info.dtype == "F8_E4M3" else _E8M0
        most = float(self.widened(tensor, read, np.array([_MOST[dtype]], dtype))[0])
        if (asked.largest > self.limit * np.minimum(scales, most)).any():
            raise InputError(
                f"new values of tensor '{tensor.name}' need a scale of their group that is too large for {info.dtype} "
                "beside the scale of the tensor; use smaller values, or `write: {dtype: bfloat16}`"
            )
        return np.minimum(scales, most)

    def with_scales(
        self, tensor: Coded, read: Stored, blocks: Indices, scales: NDArray[np.float64]
    ) -> dict[str, StoredEdit]:
        """Take the scale of the tensor out again; rounding finds the stored scale that was meant."""
        whole = float(self._whole(tensor, read))
        return super().with_scales(tensor, read, blocks, scales / whole if self.multiplies else scales * whole)
