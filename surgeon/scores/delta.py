"""The size of a change: |weight - other|, and TALL's mask as a threshold of a ratio. Neither text nor a model run.

With theta the weight, theta_t another model's and theta_M that of a model merged of it and others, TALL keeps the
entries with |theta_t - theta| >= lambda |theta_M - theta_t| (arXiv 2405.07813, its task vectors written out). The
score is the quotient of both sides, so that `at_least` is lambda; where the merger lost nothing it is infinite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def delta(weights: NDArray[Any], other: NDArray[Any], merged: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """Return |weights - other| of one tensor, or its quotient by |merged - other|; in float64, rounded to float32."""
    theirs = other.astype(np.float64)
    change = np.abs(weights.astype(np.float64) - theirs)
    if merged is not None:
        lost = np.abs(merged.astype(np.float64) - theirs)
        change = np.divide(change, lost, out=np.full_like(change, np.inf), where=lost > 0)
    with np.errstate(over="ignore"):
        return change.astype(np.float32)
