"""`restore: REGION, from: MODEL` takes another checkpoint's values inside the region: reversion, transplant.

From a patch file it takes the values that the patch carries, which replays what the patch was made from.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.errors import InputError
from surgeon.operations.base import Operation, Target, rounded, values_of


class Restore(Operation):
    """Take the values that another checkpoint of the same architecture, or a patch file, has in a region."""

    kind: ClassVar[str] = "restore"

    restore: str = Field(description="name of the region")
    from_: str = Field(alias="from", description="the other model: folder, builtin:NAME, or Hub id; or a patch file")

    @property
    def takes(self) -> tuple[tuple[str, str], ...]:
        """The region and the model that values are taken from."""
        return ((self.restore, self.from_),)

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return the donor's values, bit for bit where the dtypes are equal, else rounded once.

        Raises:
            CheckpointError: the donor has no such tensor.
            RegionError: the donor is a patch that lacks one of the entries.
            InputError: a finite value is too large for the dtype.
        """
        taken = values_of(self.from_, target.name, target.indices)
        if taken.dtype == values.dtype:
            return taken
        result = rounded(taken.astype(np.float64), values.dtype)
        if np.count_nonzero(np.isfinite(result)) < np.count_nonzero(np.isfinite(taken)):
            raise InputError(
                f"'restore {self.restore}': values of tensor '{target.name}' in {self.from_} ({taken.dtype.name}) are "
                f"too large for {values.dtype.name}"
            )
        return result
