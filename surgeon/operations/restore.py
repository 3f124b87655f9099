"""`restore: REGION, from: MODEL` takes another checkpoint's values inside the region: reversion, transplant."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.checkpoint import Checkpoint
from surgeon.operations.base import Operation, Target, rounded


class Restore(Operation):
    """Take the values that another checkpoint of the same architecture has in a region."""

    kind: ClassVar[str] = "restore"

    restore: str = Field(description="name of the region")
    from_: str = Field(alias="from", description="the other model: folder, builtin:NAME, or Hub id")

    @property
    def donor(self) -> str:
        """The model that values are taken from."""
        return self.from_

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return the donor's values, bit for bit where the dtypes are equal, else rounded once.

        Raises:
            CheckpointError: the donor has no such tensor.
        """
        taken = open_donor(self.from_).array(target.name).reshape(-1)[target.indices]
        return taken if taken.dtype == values.dtype else rounded(taken.astype(np.float64), values.dtype)


@lru_cache(maxsize=4)
def open_donor(name: str) -> Checkpoint:
    """Open a checkpoint that values are taken from; it stays mapped for the next tensor.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return Checkpoint.open(name)
