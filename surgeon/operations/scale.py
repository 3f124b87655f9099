"""`scale: REGION, by: FACTOR` multiplies the region's entries."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.operations.base import Operation, Target, rounded


class Scale(Operation):
    """Multiply the entries of a region by a factor."""

    kind: ClassVar[str] = "scale"

    scale: str = Field(description="name of the region")
    by: float = Field(description="the factor", allow_inf_nan=False)

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return the products, computed in float64 and rounded once."""
        return rounded(values.astype(np.float64) * self.by, values.dtype)
