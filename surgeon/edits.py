"""What a variant changes in one tensor: flat indices and new values, in the tensor's own dtype.

An edit is computed from the source's bytes and the operations in their order, and then serves both the
writer, which pokes it into a copied shard, and the verification, which pokes it into a loaded model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint import Checkpoint
from surgeon.errors import RegionError, did_you_mean
from surgeon.naming import storage_group
from surgeon.operations import Operation, new_values, region_of
from surgeon.region import Indices, Region


@dataclass(frozen=True)
class Edit:
    """Entries of one tensor that get new values; `indices` are sorted and flat, `values` of the same length."""

    indices: Indices
    values: NDArray[Any]


def check_regions_fit(checkpoint: Checkpoint, regions: Mapping[str, Region]) -> None:
    """Check that every tensor of every region is in the checkpoint with the same shape.

    Raises:
        RegionError: one is not.
    """
    for label, region in regions.items():
        for name in region:
            info = checkpoint.tensors.get(name)
            if info is None:
                raise RegionError(
                    f"region '{label}' has tensor '{name}', which {checkpoint.folder} has not"
                    f"{did_you_mean(name, checkpoint.tensors)}"
                )
            if info.shape != region.shapes[name]:
                raise RegionError(
                    f"region '{label}' has tensor '{name}' of shape {list(region.shapes[name])}; in "
                    f"{checkpoint.folder} its shape is {list(info.shape)}: the region belongs to another model"
                )


def touched_tensors(
    checkpoint: Checkpoint, operations: Sequence[Operation], regions: Mapping[str, Region]
) -> list[str]:
    """Return the stored tensors that the operations may change, stored copies of tied weights included."""
    named = {name for operation in operations for name in regions[region_of(operation)]}
    return [name for name in checkpoint.tensors if named.intersection(storage_group(checkpoint, name))]


def make_edit(
    checkpoint: Checkpoint, name: str, operations: Sequence[Operation], regions: Mapping[str, Region]
) -> Edit:
    """Compute what the operations, in their order, make of one tensor.

    Memory: a few times the number of selected entries; the tensor itself is a view of the mapped file.
    """
    group = storage_group(checkpoint, name)
    steps = []
    for operation in operations:
        region = regions[region_of(operation)]
        member = next((alias for alias in group if alias in region), None)
        if member is not None:
            steps.append((operation, region.indices(member)))
    if len(steps) == 1:
        indices = steps[0][1]
    else:
        indices = np.unique(np.concatenate([chosen for _, chosen in steps])) if steps else np.empty(0, np.int64)
    values = checkpoint.array(name).reshape(-1)[indices]
    for operation, chosen in steps:
        at = slice(None) if chosen.size == indices.size else np.searchsorted(indices, chosen)
        values[at] = new_values(operation, values[at])
    return Edit(indices, values)
