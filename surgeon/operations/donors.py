"""Other models, or patches, that operations take values from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.hashing import Stamp, file_stamp
from surgeon.checkpoint.sources import local_file, times_looked
from surgeon.region.mask import Indices
from surgeon.region.patch import Patch, is_patch_file


def open_donor(name: str) -> Checkpoint | Patch:
    """Open a checkpoint, or a patch, that values are taken from; it stays mapped for the next tensor.

    It is opened anew when one of its files has changed; from the Hub it is the same until `sources.look_again`.

    Raises:
        CheckpointError: it is missing or damaged.
        RegionError: it is a damaged patch.
    """
    return _open(name, _files(local_file(name)), times_looked())


def values_of(donor: str, tensor: str, indices: Indices) -> NDArray[Any]:
    """Return what a donor has at flat indices of a tensor, in its own dtype.

    Raises:
        CheckpointError: the donor has no such tensor.
        RegionError: the donor is a patch that lacks one of the entries.
    """
    opened = open_donor(donor)
    if isinstance(opened, Patch):
        return opened.at(tensor, indices)
    return opened.entries(tensor, indices)


def finite_as(result: NDArray[Any], *given: NDArray[np.floating[Any]]) -> bool:
    """True if a result is finite wherever all that it was made from is."""
    there = np.logical_and.reduce([np.isfinite(values) for values in given])
    return bool(np.isfinite(result[there]).all())


def _files(path: Path) -> tuple[tuple[str, Stamp], ...]:
    """Return the stamps of the files that say what a donor is; nothing of one that is not on this disk."""
    files = [path] if path.is_file() else []
    if path.is_dir():
        told = (file for file in path.iterdir() if file.suffix in (".safetensors", ".json"))
        files = sorted(file for file in told if file.is_file())
    return tuple((file.name, file_stamp(file.stat())) for file in files)


@lru_cache(maxsize=8)
def _open(name: str, files: tuple[tuple[str, Stamp], ...], looked: int) -> Checkpoint | Patch:
    path = local_file(name)
    return Patch.load(path) if is_patch_file(path) else Checkpoint.open(name)
