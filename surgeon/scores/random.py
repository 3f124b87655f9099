"""A random number per entry in place of an importance: what any score must beat."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.scores.base import Reader, WeightScore
from surgeon.seeds import generator


class Random(WeightScore):
    """A number between 0 and 1 drawn for each entry: what any score must beat."""

    kind: Literal["random"] = Field(description="the score: drawn at random")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="another seed, another draw")

    def described(self) -> str:
        """Say which draw it is."""
        return f"random, seed {self.seed}"

    def reader(self, checkpoint: Checkpoint) -> Reader:
        """Return a tensor's draw: float32 in [0, 1), uniform; it depends on (seed, name) only."""
        return lambda name: generator(self.seed, f"score:{name}").random(checkpoint.info(name).shape, dtype=np.float32)
