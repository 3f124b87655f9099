"""`restore: REGION, from: MODEL` takes another checkpoint's values inside the region: reversion, transplant.

From a patch file it takes the values that the patch carries, which replays what the patch was made from.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.sources import local_file
from surgeon.errors import InputError
from surgeon.operations.base import Operation, Target, rounded
from surgeon.region.patch import Patch, is_patch_file


class Restore(Operation):
    """Take the values that another checkpoint of the same architecture, or a patch file, has in a region."""

    kind: ClassVar[str] = "restore"

    restore: str = Field(description="name of the region")
    from_: str = Field(alias="from", description="the other model: folder, builtin:NAME, or Hub id; or a patch file")

    @property
    def donor(self) -> str:
        """The model that values are taken from."""
        return self.from_

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return the donor's values, bit for bit where the dtypes are equal, else rounded once.

        Raises:
            CheckpointError: the donor has no such tensor.
            RegionError: the donor is a patch that lacks one of the entries.
            InputError: a finite value is too large for the dtype.
        """
        donor = open_donor(self.from_)
        if isinstance(donor, Patch):
            taken = donor.at(target.name, target.indices)
        else:
            taken = donor.array(target.name).reshape(-1)[target.indices]
        if taken.dtype == values.dtype:
            return taken
        result = rounded(taken.astype(np.float64), values.dtype)
        if np.count_nonzero(np.isfinite(result)) < np.count_nonzero(np.isfinite(taken)):
            raise InputError(
                f"'restore {self.restore}': values of tensor '{target.name}' in {self.from_} ({taken.dtype.name}) are "
                f"too large for {values.dtype.name}"
            )
        return result


def open_donor(name: str) -> Checkpoint | Patch:
    """Open a checkpoint, or a patch, that values are taken from; it stays mapped for the next tensor.

    Raises:
        CheckpointError: it is missing or damaged.
        RegionError: it is a damaged patch.
    """
    path = local_file(name)
    return _open(name, path.stat().st_mtime_ns if path.exists() else None)


@lru_cache(maxsize=4)
def _open(name: str, changed: int | None) -> Checkpoint | Patch:
    path = local_file(name)
    return Patch.load(path) if is_patch_file(path) else Checkpoint.open(name)
