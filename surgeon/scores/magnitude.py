"""Importance by size: |weight|. Neither text nor a forward pass is needed, and nothing is stored."""

from __future__ import annotations

from typing import Literal

import numpy as np
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
        """Return |weight| of a tensor, exact for every dtype of no more than float32's precision."""
        return lambda name: np.abs(checkpoint.array(name).astype(np.float32))
