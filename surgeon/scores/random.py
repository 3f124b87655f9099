"""A random number per entry in place of an importance: what any score must beat."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
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
        """Return a tensor's draw."""
        return lambda name: random_scores(name, checkpoint.info(name).shape, self.seed)


def random_scores(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Return float32 in [0, 1), uniform, in the tensor's shape; the draw depends on (seed, name) only."""
    return generator(seed, f"score:{name}").random(shape, dtype=np.float32)
