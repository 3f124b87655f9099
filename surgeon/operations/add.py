"""`add: REGION, from: MODEL, base: MODEL, factor: X` adds what training changed: theta + X * (other - base).

Task arithmetic inside regions: Localize-and-Stitch (arXiv 2408.13656) adds each donor's difference in a region of its
own and takes the mean where these overlap.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from surgeon.errors import InputError
from surgeon.operations.base import Operation, Target, rounded, values_of

Names = Annotated[list[str], Field(min_length=1)]


class Add(Operation):
    """Add the difference of other models from a base inside a region; the mean where several have an entry."""

    kind: ClassVar[str] = "add"
    bytes_per_entry: ClassVar[int] = 80

    add: str | Names = Field(description="name of the region; or one for each model of `from`")
    from_: str | Names = Field(
        alias="from", description="the other models: folder, builtin:NAME, Hub id, or patch file"
    )
    base: str | None = Field(None, description="what they differ from; the recipe's own model when left out")
    factor: float = Field(1.0, description="of the difference", allow_inf_nan=False)

    @model_validator(mode="after")
    def _a_model_for_each(self) -> Add:
        models = [self.from_] if isinstance(self.from_, str) else self.from_
        if not isinstance(self.add, str) and len(self.add) != len(models):
            raise ValueError(f"{len(self.add)} regions and {len(models)} models: give one region for all, or one each")
        return self

    @property
    def regions(self) -> tuple[str, ...]:
        """The region of each donor."""
        models = [self.from_] if isinstance(self.from_, str) else self.from_
        return (self.add,) * len(models) if isinstance(self.add, str) else tuple(self.add)

    @property
    def takes(self) -> tuple[tuple[str, str], ...]:
        """The region and the donor of each difference, and the base in the same regions."""
        models = (self.from_,) if isinstance(self.from_, str) else tuple(self.from_)
        bases = tuple((region, self.base) for region in dict.fromkeys(self.regions) if self.base is not None)
        return (*zip(self.regions, models, strict=True), *bases)

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return the sums, computed in float64 and rounded once; entries whose difference is zero keep their bits.

        Raises:
            CheckpointError: a donor has no such tensor.
            RegionError: a donor is a patch that lacks one of the entries.
            InputError: a sum is too large for the dtype.
        """
        change, shared = np.zeros(values.size), np.zeros(values.size)
        for (_, donor), part in zip(self.takes, target.parts, strict=False):
            if not part.size:  # a tensor that this region, and perhaps the donor, does not have
                continue
            at = np.searchsorted(target.indices, part)
            base = target.source.reshape(-1)[part] if self.base is None else values_of(self.base, target.name, part)
            change[at] += values_of(donor, target.name, part).astype(np.float64) - base.astype(np.float64)
            shared[at] += 1
        change *= self.factor
        change /= shared
        result = np.where(change == 0, values, rounded(values.astype(np.float64) + change, values.dtype))
        if not np.isfinite(result[np.isfinite(values.astype(np.float64)) & np.isfinite(change)]).all():
            raise InputError(
                f"'add {', '.join(dict.fromkeys(self.regions))}' makes entries of tensor '{target.name}' too large for "
                f"its dtype {values.dtype.name}; use a smaller factor"
            )
        return result
