"""`zero: REGION` sets the region's entries to zero."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.operations.base import Operation, Target


class Zero(Operation):
    """Set the entries of a region to zero."""

    kind: ClassVar[str] = "zero"
    zeroes: ClassVar[bool] = True

    zero: str = Field(description="name of the region")

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return zeros; a negative zero stays as it is, so that only non-zero entries change."""
        return np.where(values != 0, np.zeros((), values.dtype), values)
