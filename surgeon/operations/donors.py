"""Other models, or patches, that operations take values from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.sources import local_file
from surgeon.region.patch import Patch, is_patch_file
from surgeon.region.region import Indices


def open_donor(name: str) -> Checkpoint | Patch:
    """Open a checkpoint, or a patch, that values are taken from; it stays mapped for the next tensor.

    Raises:
        CheckpointError: it is missing or damaged.
        RegionError: it is a damaged patch.
    """
    path = local_file(name)
    return _open(name, path.stat().st_mtime_ns if path.exists() else None)


def values_of(donor: str, tensor: str, indices: Indices) -> NDArray[Any]:
    """Return what a donor has at flat indices of a tensor, in its own dtype.

    Raises:
        CheckpointError: the donor has no such tensor.
        RegionError: the donor is a patch that lacks one of the entries.
    """
    opened = open_donor(donor)
    if isinstance(opened, Patch):
        return opened.at(tensor, indices)
    taken: NDArray[Any] = opened.array(tensor).reshape(-1)[indices]
    return taken


def finite_as(result: NDArray[Any], *given: NDArray[np.floating[Any]]) -> bool:
    """True if a result is finite wherever all that it was made from is."""
    there = np.logical_and.reduce([np.isfinite(values) for values in given])
    return bool(np.isfinite(result[there]).all())


@lru_cache(maxsize=8)
def _open(name: str, changed: int | None) -> Checkpoint | Patch:
    path = local_file(name)
    return Patch.load(path) if is_patch_file(path) else Checkpoint.open(name)
