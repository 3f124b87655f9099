"""`fill: REGION, value: X` or `mean: tensor | row` writes a constant or a mean into the region's entries."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from surgeon.operations.base import Operation, Target, rounded


class Fill(Operation):
    """Fill the entries of a region with a constant, or with a mean of the source checkpoint's tensor."""

    kind: ClassVar[str] = "fill"

    fill: str = Field(description="name of the region")
    value: float | None = Field(None, description="the constant", allow_inf_nan=False)
    mean: Literal["tensor", "row"] | None = Field(
        None, description="mean over the whole tensor, or over its last axis at each entry's place"
    )

    @model_validator(mode="after")
    def _one_filling(self) -> Fill:
        if (self.value is None) == (self.mean is None):
            raise ValueError("give exactly one of value, mean")
        return self

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return the filling; means are taken in float64 over the source, selected entries included."""
        if self.value is not None:
            filling = np.full(values.shape, self.value)
        elif self.mean == "tensor":
            filling = np.full(values.shape, target.source.mean(dtype=np.float64))
        else:
            width = target.source.shape[-1]
            rows, which = np.unique(target.indices // width, return_inverse=True)
            matrix = target.source.reshape(-1, width)
            filling = np.array([matrix[row].mean(dtype=np.float64) for row in rows])[which]
        return rounded(filling, values.dtype)
