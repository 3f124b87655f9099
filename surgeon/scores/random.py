"""A random number per entry in place of an importance: what any score must beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surgeon.seeds import generator


def random_scores(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Return float32 in [0, 1), uniform, in the tensor's shape; the draw depends on (seed, name) only."""
    return generator(seed, f"score:{name}").random(shape, dtype=np.float32)
