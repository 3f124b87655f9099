"""What formats have in common: how their logical tensors are made, what dtype these have, which scales are none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Codec, Coded, Encoded, Indices, Rounding, Stored, StoredEdit
from surgeon.checkpoint.storage import DTYPE_BITS, TensorInfo
from surgeon.errors import CheckpointError

__all__ = [
    "Codec", "Coded", "Encoded", "Indices", "Rounding", "Stored", "StoredEdit", "coded", "logical_dtype",
    "require_scales",
]  # fmt: skip
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def coded(codec: Codec, name: str, dtype: str, shape: tuple[int, ...], parts: Mapping[str, TensorInfo]) -> Coded:
    """Return the logical tensor of some name, dtype and shape that lies in `parts`, the codes first."""
    nbytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    return Coded(name, dtype, shape, next(iter(parts.values())).path, -1, nbytes, codec, parts)


def logical_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype of the unquantized model by its config, as safetensors names it; BF16 where it says none."""
    inner = config.get("text_config") or {}
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(place.get(key), str) and place[key] in _DTYPES:
                return _DTYPES[place[key]]
    return "BF16"


def require_scales(tensor: Coded, info: TensorInfo, scales: NDArray[Any]) -> None:
    """Refuse scales, those of the stored tensor `info`, that are no finite positive numbers.

    Raises:
        CheckpointError: one is not.
    """
    values = scales.astype(np.float64)
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        raise CheckpointError(
            f"{info.path}: tensor '{info.name}' holds the scale {values[wrong][0]:g}, with which no weight of "
            f"'{tensor.name}' can be told; fetch the file again, or quantize the model again"
        )
