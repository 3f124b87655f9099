"""`slerp: REGION, from: MODEL, fraction: T` turns the region's entries toward another model's, on an arc."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.operations.base import Operation, Target, rounded, values_of

_STRAIGHT = 1e-6  # sine of the angle, below which circle and chord are one


class Slerp(Operation):
    """Interpolate between the entries of a region and another model's, as two vectors per tensor (Shoemake 1985)."""

    kind: ClassVar[str] = "slerp"
    bytes_per_entry: ClassVar[int] = 80

    slerp: str = Field(description="name of the region")
    from_: str = Field(alias="from", description="the other model: folder, builtin:NAME, Hub id, or patch file")
    fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.5, description="of the way from here to there")

    @property
    def takes(self) -> tuple[tuple[str, str], ...]:
        """The region and the model that is gone toward."""
        return ((self.slerp, self.from_),)

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return sin((1 - t) w) / sin(w) here + sin(t w) / sin(w) there, w the angle between both; rounded once.

        Where the angle is next to 0 or half a turn, or a vector is zero, the chord is taken instead. All in float64.

        Raises:
            CheckpointError: the donor has no such tensor.
            RegionError: the donor is a patch that lacks one of the entries.
        """
        here, t = values.astype(np.float64), self.fraction
        theirs = values_of(self.from_, target.name, target.indices).astype(np.float64)
        lengths = float(np.linalg.norm(here) * np.linalg.norm(theirs))
        angle = float(np.arccos(np.clip(here @ theirs / lengths, -1.0, 1.0))) if lengths > 0 else 0.0
        if np.sin(angle) < _STRAIGHT:
            turned = (1 - t) * here + t * theirs
        else:
            turned = (np.sin((1 - t) * angle) * here + np.sin(t * angle) * theirs) / np.sin(angle)
        return values if t == 0 else rounded(turned, values.dtype)
