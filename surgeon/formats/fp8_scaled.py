"""FP8 with a scale per tensor, row, group or block, as compressed-tensors, ModelOpt, FBGEMM and Quark store it.

`NAME` in F8_E4M3, `NAME_scale` beside it: of one entry, one a row, or one per block of the size that follows from both
shapes; U8 scales are powers of two (MXFP8). A weight is code times scale. Scales of activations stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from surgeon.checkpoint.coded import Coded
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import CheckpointError
from surgeon.formats.base import COMPRESSED, coded, logical_dtype, require_method, tensors_beside, weight_groups, whole
from surgeon.formats.fp8_block import Fp8Block

_METHODS = (COMPRESSED, "modelopt", "fbgemm_fp8", "fp8", "quark")
_WHOLE = 1 << 40  # a block wider or higher than any tensor
_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")


@dataclass(frozen=True)
class Fp8Scaled(Fp8Block):
    """FP8 codes, and scales of blocks as wide and high as a row or the tensor, or smaller."""

    kind: ClassVar[str] = "fp8-scaled"

    rows: int = _WHOLE
    columns: int = _WHOLE
    per: str = "tensor"

    @classmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Claim matrices in F8_E4M3 that have scales, `NAME_scale` or of quantizer `fp8` `NAME_scale_inv`."""
        ending = "_scale_inv" if settings.get("quant_method") == "fp8" else "_scale"
        dtype, sizes = logical_dtype(config), _block_sizes(settings)
        tensors = []
        for name, info in stored.items():
            scale = stored.get(name + ending)
            if info.dtype != "F8_E4M3" or len(info.shape) != 2 or not info.numel or name.endswith(_SCALES):
                continue
            require_method(settings, _METHODS, info, "FP8 (E4M3)")
            if scale is None:
                raise CheckpointError(
                    f"{info.path}: '{name}' holds FP8 codes, but its scales '{name}{ending}' are missing; fetch the "
                    "files again"
                )
            beside = tensors_beside(stored, name.removesuffix(".weight"))
            codec = cls._fitting(info, scale, sizes)
            tensors.append(coded(codec, name, dtype, info.shape, {"codes": info, "scales": scale, **beside}))
        return tensors

    @classmethod
    def _fitting(cls, info: TensorInfo, scale: TensorInfo, sizes: list[tuple[int, int]]) -> Fp8Scaled:
        """Return the codec whose blocks give the scales their shape."""
        rows, columns = info.shape
        exponents = scale.dtype == "U8"
        if scale.dtype in _DTYPES:
            if scale.numel == 1:
                return cls(_WHOLE, _WHOLE, exponents, "tensor")
            if scale.shape in ((rows,), (rows, 1)):
                return cls(1, _WHOLE, exponents, "row")
            for high, wide in sizes:
                if scale.shape == (math.ceil(rows / high), math.ceil(columns / wide)):
                    return cls(high, wide, exponents, f"group of {wide}" if high == 1 else f"block of {high} x {wide}")
        raise CheckpointError(
            f"{scale.path}: '{scale.name}' is {scale.dtype} of shape {list(scale.shape)}; the codes of '{info.name}' "
            f"of shape {list(info.shape)} need one scale, one a row, or one a block of the config's size, in "
            f"{', '.join(_DTYPES)}; fetch the files again"
        )

    @property
    def words(self) -> str:
        """Name the format and what has a scale."""
        return f"FP8 (E4M3), a scale per {self.per}"


_SCALES = ("_scale", "_scale_inv", "_scale_2")


def _block_sizes(settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the sizes of blocks, rows by columns, that the config speaks of."""
    sizes = []
    for weights in weight_groups(settings):
        block, group = weights.get("block_structure"), weights.get("group_size")
        if isinstance(block, list) and len(block) == 2 and all(whole(size, 1, 1 << 31) for size in block):
            sizes.append((block[0], block[1]))
        if whole(group, 1, 1 << 31):
            sizes.append((1, int(group or 1)))
    return sizes
