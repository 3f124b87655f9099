"""How a parameter lies in memory and over processes: what of it is here, and which of some entries those are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgeon.checkpoint.storage import NUMPY_DTYPES
from surgeon.errors import FreezeError
from surgeon.freeze.entries import bits
from surgeon.region.mask import Indices

TORCH_DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
PLAIN = (torch.nn.Parameter, Tensor)  # asked for first, since asking for an attribute that is not there takes time


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """Return a parameter's whole shape, also where this process holds a part of it or nothing."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def is_distributed(tensor: Tensor) -> bool:
    """True for a DTensor."""
    return type(tensor) not in PLAIN and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, without autograd."""
    if not is_distributed(tensor):
        return tensor.data
    with torch.no_grad():
        here: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return here.data


def is_plain(tensor: Tensor) -> bool:
    """True if a tensor's entries are stored one by one: no subclass that quantizes or packs them."""
    return type(local(tensor)) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) or hasattr(tensor, "ds_id")


def local_flat(tensor: Tensor, what: str) -> Tensor:
    """View what this process holds of a tensor as one dimension, sharing memory, without autograd.

    Raises:
        FreezeError: it is not contiguous, so that no flat index names its entries.
    """
    here = local(tensor)
    if not here.is_contiguous():
        raise FreezeError(f"{what}: not contiguous in memory; call .contiguous() on it before freezing")
    return here.view(-1)


@contextmanager
def whole_flat(parameter: Tensor) -> Iterator[Tensor]:
    """Yield the whole parameter as one dimension; every process of a sharded one must enter together."""
    if is_distributed(parameter):
        with torch.no_grad():
            yield parameter.full_tensor().contiguous().view(-1)  # type: ignore[attr-defined]
    elif hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.detach().reshape(-1)
    else:
        yield parameter.detach().reshape(-1)


def part_here(parameter: Tensor, indices: Indices, what: str) -> tuple[Indices, NDArray[np.int64] | None]:
    """Say which of some entries of a parameter this process holds.

    Returns their flat indices in what it holds, ascending, and their positions among `indices`; None for all of them.

    Raises:
        FreezeError: the parameter is distributed in a way that is not understood.
    """
    if not is_distributed(parameter):
        return indices, None
    from torch.distributed.tensor import distribute_tensor

    ordinals = torch.zeros(parameter.numel(), dtype=torch.int64)
    ordinals[torch.from_numpy(indices)] = torch.arange(1, indices.size + 1)
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    try:  # every process has them all, so that nothing is sent
        spread = distribute_tensor(
            ordinals.view(parameter.shape).to(parameter.device), mesh, placements, src_data_rank=None
        )
        mine = spread.to_local().reshape(-1).cpu().numpy()
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        raise FreezeError(f"{what}: distributed as {placements}, which freezing does not know ({error})") from None
    if mine.size != local(parameter).numel():
        raise FreezeError(f"{what}: distributed as {placements}, of which this process holds an unexpected part")
    here = np.flatnonzero(mine)
    return here, mine[here] - 1


def is_first_replica(parameter: Tensor) -> bool:
    """True in one of the processes that hold the same part of a parameter; there its entries are counted."""
    if is_distributed(parameter):
        coordinate = parameter.device_mesh.get_coordinate()  # type: ignore[attr-defined]
        placements = parameter.placements  # type: ignore[attr-defined]
        pairs = zip(placements, coordinate or (), strict=True)
        return not any(placement.is_replicate() and position for placement, position in pairs)
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor of the processor's, of a dtype that checkpoints have, as an array that shares its memory."""
    stored = next(name for name, kind in TORCH_DTYPES.items() if kind == tensor.dtype)
    return np.asarray(bits(tensor).numpy().view(NUMPY_DTYPES[stored]))
