"""`zero: REGION` sets the region's entries to zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field


class Zero(BaseModel):
    """Set the entries of a region to zero."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    zero: str = Field(description="name of the region")


def zeroed(values: NDArray[Any]) -> NDArray[Any]:
    """Return zeros of the same dtype; a negative zero stays as it is, so that only non-zero entries change."""
    return np.where(values != 0, np.zeros((), values.dtype), values)
