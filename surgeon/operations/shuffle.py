"""`shuffle: REGION, seed: N` permutes the region's entries of each tensor among themselves."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from surgeon.operations.base import Operation, Target
from surgeon.seeds import generator


class Shuffle(Operation):
    """Permute the entries of a region at random, within each tensor."""

    kind: ClassVar[str] = "shuffle"

    shuffle: str = Field(description="name of the region")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the draw")

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return the same values, bit for bit, in another order, which depends on the seed and the tensor's name."""
        return values[generator(self.seed, f"shuffle:{target.name}").permutation(values.size)]
