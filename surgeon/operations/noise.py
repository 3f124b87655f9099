"""`noise: REGION, relative: SIGMA, seed: N` multiplies each entry by a random factor around one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.operations.base import Operation, Target, rounded
from surgeon.seeds import generator


class Noise(Operation):
    """Multiply each entry of a region by 1 + relative * z, z standard normal."""

    kind: ClassVar[str] = "noise"

    noise: str = Field(description="name of the region")
    relative: float = Field(description="standard deviation of the change, relative to the entry", gt=0)
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the draw")

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return the perturbed values; the draw depends on the seed, the tensor's name and the region's entries."""
        draws = generator(self.seed, f"noise:{target.name}").standard_normal(values.size)
        return rounded(values.astype(np.float64) * (1 + self.relative * draws), values.dtype)
