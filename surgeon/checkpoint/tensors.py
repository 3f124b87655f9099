"""numpy views as torch tensors: the one place where the two meet, so that light modules need no torch."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

# torch.from_numpy does not know the ml_dtypes, so they cross as integers of the same width.
_CROSSINGS: dict[np.dtype[Any], tuple[type[np.generic], torch.dtype]] = {
    np.dtype(ml_dtypes.bfloat16): (np.uint16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
    np.dtype(ml_dtypes.float8_e8m0fnu): (np.uint8, torch.float8_e8m0fnu),
}


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor that shares the memory of a writable array, dtype for dtype."""
    crossing = _CROSSINGS.get(array.dtype)
    if crossing is None:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(crossing[0])).view(crossing[1])


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return an array that shares the memory of a CPU tensor, dtype for dtype."""
    for dtype, (carrier, torch_dtype) in _CROSSINGS.items():
        if tensor.dtype == torch_dtype:
            integer = torch.int16 if carrier is np.uint16 else torch.uint8
            return tensor.detach().view(integer).numpy().view(dtype)
    return np.asarray(tensor.detach().numpy())
