"""Importance by size: |weight|. Neither text nor a forward pass is needed, and nothing is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def magnitude(weights: NDArray[Any]) -> NDArray[np.float32]:
    """Return |weight| of one tensor as float32, exact for every dtype of no more than float32's precision."""
    return np.abs(weights.astype(np.float32))
