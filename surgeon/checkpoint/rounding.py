"""Rounding once, to any dtype that weights are stored in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import InputError


def rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round float64 to another dtype, once, to nearest and ties to even; what is too large becomes infinite.

    The narrow dtypes that numpy does not have itself are converted by way of float32. To round to nearest on that
    way too would round twice, so there the float32 is rounded to odd, after which the second rounding is right.

    Raises:
        InputError: the dtype is one of integers, and a value lies outside its range.
    """
    if np.issubdtype(dtype, np.integer):
        return _integers(np.rint(values), dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.itemsize >= 4 or dtype == np.float16:
            return values.astype(dtype)
        single = values.astype(np.float32)
        inexact = single.astype(np.float64) != values
        too_large = np.abs(single.astype(np.float64)) > np.abs(values)
        bits = single.view(np.uint32) - too_large.astype(np.uint32)
        result: NDArray[Any] = (bits | inexact).view(np.float32).astype(dtype)
        return result


def _integers(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max) + 1
    outside = ~((values >= low) & (values < high))
    if outside.any():
        raise InputError(f"{values[outside][0]:g} lies outside of the range of {dtype.name}; use smaller values")
    return values.astype(dtype)
