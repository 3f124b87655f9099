"""How a parameter lies in memory and over processes: what of it is here, and which flat indices that makes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from surgeon.errors import FreezeError
from surgeon.region.region import Indices

PLAIN = (torch.nn.Parameter, Tensor)  # asked for first, since asking for an attribute that is not there takes time


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """Return a parameter's whole shape, also where this process holds a part of it or nothing."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def is_plain(tensor: Tensor) -> bool:
    """True if a tensor's entries are stored one by one: no subclass that quantizes or packs them."""
    if hasattr(tensor, "to_local"):
        with torch.no_grad():
            tensor = tensor.to_local()
    return type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) or hasattr(tensor, "ds_id")


def local_flat(tensor: Tensor, what: str) -> Tensor:
    """View what this process holds of a tensor as one dimension, sharing memory, without autograd.

    Raises:
        FreezeError: it is not contiguous, so that no flat index names its entries.
    """
    local = tensor
    if type(tensor) not in PLAIN and hasattr(tensor, "to_local"):
        with torch.no_grad():
            local = tensor.to_local()
    if not local.is_contiguous():
        raise FreezeError(f"{what}: not contiguous in memory; call .contiguous() on it before freezing")
    return local.detach().view(-1)


@contextmanager
def whole_flat(parameter: Tensor) -> Iterator[Tensor]:
    """Yield the whole parameter as one dimension; every process of a sharded one must enter together."""
    if hasattr(parameter, "full_tensor"):
        with torch.no_grad():
            yield parameter.full_tensor().contiguous().view(-1)
    elif hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.detach().reshape(-1)
    else:
        yield parameter.detach().reshape(-1)


def local_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of what this process holds."""
    if hasattr(parameter, "to_local"):
        with torch.no_grad():
            return tuple(parameter.to_local().shape)
    return shape_of(parameter)


def local_indices(parameter: Tensor, indices: Indices, what: str) -> Indices:
    """Return the flat indices, inside what this process holds, of those given entries that it holds; sorted.

    Raises:
        FreezeError: the parameter is distributed in a way that is not understood.
    """
    if not hasattr(parameter, "to_local"):
        return indices
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements = parameter.placements  # type: ignore[attr-defined]
    if not all(type(placement) in (Replicate, Shard) for placement in placements):
        raise FreezeError(f"{what}: distributed as {placements}; freezing knows plain shards and replicas only")
    shape = tuple(parameter.shape)
    here, offset = compute_local_shape_and_global_offset(shape, parameter.device_mesh, placements)  # type: ignore[attr-defined]
    if not math.prod(here):
        return np.empty(0, dtype=np.int64)
    coordinates = np.unravel_index(indices, shape)
    inside = np.ones(indices.size, dtype=np.bool_)
    moved = []
    for coordinate, start, length in zip(coordinates, offset, here, strict=True):
        inside &= (coordinate >= start) & (coordinate < start + length)
        moved.append(coordinate - start)
    kept = np.ravel_multi_index([axis[inside] for axis in moved], tuple(here))
    return np.asarray(kept, dtype=np.int64)


def is_first_replica(parameter: Tensor) -> bool:
    """True in one of the processes that hold the same part of a parameter; there its entries are counted."""
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import Replicate

        coordinate = parameter.device_mesh.get_coordinate()  # type: ignore[attr-defined]
        placements = parameter.placements  # type: ignore[attr-defined]
        return not any(
            isinstance(placement, Replicate) and position
            for placement, position in zip(placements, coordinate or (), strict=True)
        )
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


TORCH_DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
