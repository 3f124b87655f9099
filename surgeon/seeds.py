"""Random numbers that depend on a seed and a label, and on nothing else: not on order, shards or workers."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, label: str) -> np.random.Generator:
    """Return the random stream of (seed, label); the label is usually a tensor's name."""
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{label}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(entropy))
