"""Importance by size: |weight|. Neither text nor a forward pass is needed, and nothing is stored."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.scores.base import Reader, WeightScore


class Magnitude(WeightScore):
    """|weight|; no model is run and no text read."""

    kind: Literal["magnitude"] = Field(description="the score: the size of a weight")

    def described(self) -> str:
        """Say what it is made from."""
        return "magnitude, from the weights alone"

    def reader(self, checkpoint: Checkpoint) -> Reader:
        """Return |weight| of a tensor."""
        return lambda name: magnitude(checkpoint.array(name))


def magnitude(weights: NDArray[Any]) -> NDArray[np.float32]:
    """Return |weight| of one tensor as float32, exact for every dtype of no more than float32's precision."""
    return np.abs(weights.astype(np.float32))
