"""What every operation has: a region, new values for its entries, and arithmetic that rounds once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from surgeon.errors import InputError
from surgeon.region.region import Indices


@dataclass(frozen=True)
class Target:
    """The tensor that an operation is at work on.

    `indices` are the region's entries in it, flat and sorted; `source` is the whole tensor as it is in the source
    checkpoint, before any operation, read-only. `parts` are the entries of each of the operation's regions.
    """

    name: str
    indices: Indices
    source: NDArray[Any]
    parts: tuple[Indices, ...] = ()


class Operation(BaseModel):
    """Base of the operations. The key that names the operation, `kind`, holds the region's name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    kind: ClassVar[str]

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions that are acted on, in their union; mostly one."""
        return (str(getattr(self, self.kind)),)

    @property
    def takes(self) -> tuple[tuple[str, str], ...]:
        """Other models that values are taken from, each with the region that it must have."""
        return ()

    @property
    def donors(self) -> tuple[str, ...]:
        """Other models that values are taken from."""
        return tuple(dict.fromkeys(donor for _, donor in self.takes))

    def described(self) -> list[str]:
        """Return what is done to which region, a line per region."""
        return [f"{self.kind} {region}" for region in dict.fromkeys(self.regions)]

    @abstractmethod
    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return what becomes of `values`, the target's entries as earlier operations left them.

        Shape (n,), dtype unchanged.
        """


def rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round float64 to another dtype, once, to nearest and ties to even; what is too large becomes infinite.

    The narrow dtypes that numpy does not have itself are converted by way of float32. To round to nearest on that
    way too would round twice, so there the float32 is rounded to odd, after which the second rounding is right.

    Raises:
        InputError: the dtype is one of integers, and a value lies outside its range.
    """
    if np.issubdtype(dtype, np.integer):
        return _integers(np.rint(values), dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.itemsize >= 4 or dtype == np.float16:
            return values.astype(dtype)
        single = values.astype(np.float32)
        inexact = single.astype(np.float64) != values
        too_large = np.abs(single.astype(np.float64)) > np.abs(values)
        bits = single.view(np.uint32) - too_large.astype(np.uint32)
        result: NDArray[Any] = (bits | inexact).view(np.float32).astype(dtype)
        return result


def _integers(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max) + 1
    outside = ~((values >= low) & (values < high))
    if outside.any():
        raise InputError(f"{values[outside][0]:g} lies outside of the range of {dtype.name}; use smaller values")
    return values.astype(dtype)
