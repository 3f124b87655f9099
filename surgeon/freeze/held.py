"""One frozen parameter: its frozen entries, their values, and the three things done to them.

All writes and comparisons go through integers of the same width, so that they are about bits: a NaN equals
itself and a negative zero is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from surgeon.errors import FreezeError
from surgeon.region.region import Indices

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MAXIMUM_INT32 = 2**31 - 1
# Only these may be zeroed: other state of a parameter's shape may be a copy of the weights.
MOMENTS = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
}  # fmt: skip
TORCH_DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


def bits(tensor: Tensor) -> Tensor:
    """View a tensor as integers of the same width."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """Return a parameter's whole shape, also where this process holds a part of it or nothing."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def local_flat(tensor: Tensor, what: str) -> Tensor:
    """View what this process holds of a tensor as one dimension, sharing memory, without autograd.

    Raises:
        FreezeError: it is not contiguous, so that no flat index names its entries.
    """
    local = tensor
    if hasattr(tensor, "to_local"):
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
    local_shape, offset = compute_local_shape_and_global_offset(shape, parameter.device_mesh, placements)  # type: ignore[attr-defined]
    if not math.prod(local_shape):
        return np.empty(0, dtype=np.int64)
    coordinates = np.unravel_index(indices, shape)
    inside = np.ones(indices.size, dtype=np.bool_)
    moved = []
    for coordinate, start, length in zip(coordinates, offset, local_shape, strict=True):
        inside &= (coordinate >= start) & (coordinate < start + length)
        moved.append(coordinate - start)
    kept = np.ravel_multi_index([axis[inside] for axis in moved], tuple(local_shape))
    return np.asarray(kept, dtype=np.int64)


class Held:
    """The frozen entries of one parameter in this process.

    `indices` are flat, into what this process holds of the parameter and of its gradient; `part` is the slice
    of them whose master weights are here, and `values` are theirs. `copy` counts the parameters that an untied
    model has under the names of one tensor. Memory: the indices (int32 where they fit)
    and the values in the master's dtype, on the parameter's device.
    """

    def __init__(self, name: str, parameter: torch.nn.Parameter, indices: Indices, copy: int = 0) -> None:
        self.name = name
        self.copy = copy
        self.parameter = parameter
        self.part = slice(None)
        self.gradient_is_clean = False
        self.gradient_hook: RemovableHandle | None = None
        mine = torch.from_numpy(local_indices(parameter, indices, f"tensor '{name}'")).to(parameter.device)
        small = math.prod(shape_of(parameter)) <= _MAXIMUM_INT32
        self.indices = mine.to(torch.int32) if small else mine
        with self.flat_view(parameter) as flat:
            self.values = flat[mine.to(flat.device)]

    @property
    def is_partial(self) -> bool:
        """True if this process holds a part of the parameter only (FSDP2)."""
        return hasattr(self.parameter, "to_local")

    @contextmanager
    def flat_view(self, parameter: Tensor) -> Iterator[Tensor]:
        """Yield a parameter as one dimension in which `indices` hold."""
        if hasattr(parameter, "ds_id"):
            with whole_flat(parameter) as flat:
                yield flat
        else:
            yield local_flat(parameter.data, f"tensor '{self.name}'")

    def master(self) -> Tensor:
        """Return the flat weights that the optimizer changes, as far as this process holds them."""
        return local_flat(self.parameter.data, f"tensor '{self.name}'")

    def master_indices(self) -> Tensor:
        """Return the flat indices of the frozen entries in `master()`, int64."""
        return self.indices.long()

    def write(self) -> None:
        """Put the saved values back."""
        target = self.master()
        self._follow(target)
        bits(target).scatter_(0, self.master_indices(), bits(self.values))

    def moved(self) -> int:
        """Return how many frozen entries in this process do not hold their saved bits."""
        target = self.master()
        self._follow(target)
        return count_moved(target, self.master_indices(), self.values)

    def moved_in(self, parameter: Tensor) -> int:
        """Return how many entries differ in another copy of the parameter, which may be of a narrower dtype."""
        self._require_same_shards(parameter)
        with self.flat_view(parameter) as flat:
            return count_moved(flat, self.indices[self.part].long(), self.values)

    def write_to(self, parameter: Tensor) -> None:
        """Put the saved values into another copy of the parameter."""
        self._require_same_shards(parameter)
        if hasattr(parameter, "ds_id"):
            raise FreezeError(f"tensor '{self.name}': restore works on a saved ZeRO-3 model, not on a running one")
        with self.flat_view(parameter) as flat:
            indices = self.indices[self.part].long().to(flat.device)
            bits(flat).scatter_(0, indices, bits(self.values.to(flat)))

    def zero_gradient(self) -> None:
        """Set the gradient of the frozen entries to zero.

        Raises:
            FreezeError: the gradient is sparse.
        """
        gradient = self.parameter.grad
        if gradient is None:
            return
        if gradient.is_sparse:
            raise FreezeError(
                f"tensor '{self.name}': its gradient is sparse; make the embedding with sparse=False to freeze entries"
            )
        flat = local_flat(gradient, f"the gradient of tensor '{self.name}'")
        bits(flat).index_fill_(0, self.indices.to(flat.device).long(), 0)
        self.gradient_is_clean = True

    def moments(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Return the optimizer's moments of `master()`, flat like it."""
        state = optimizer.state.get(self.parameter, {})
        keys = [key for key in MOMENTS & state.keys() if state[key].shape == self.parameter.shape]
        return [local_flat(state[key], f"{key} of tensor '{self.name}'") for key in keys]

    def clean_moments(self, optimizer: torch.optim.Optimizer) -> bool:
        """Set the moments of the frozen entries to zero; returns whether any was not."""
        dirty = False
        for moment in self.moments(optimizer):
            indices = self.master_indices().to(moment.device)
            dirty = dirty or bool(moment[indices].any())
            bits(moment).index_fill_(0, indices, 0)
        return dirty

    def _follow(self, target: Tensor) -> None:
        if target.device != self.values.device:  # the model was moved after freezing
            self.values = self.values.to(target.device)
            self.indices = self.indices.to(target.device)
        if target.dtype != self.values.dtype:
            raise FreezeError(
                f"tensor '{self.name}': was {self.values.dtype} when it was frozen and is {target.dtype} now; "
                "convert the model first and freeze it then"
            )

    def _require_same_shards(self, other: Tensor) -> None:
        mine, theirs = (getattr(parameter, "placements", None) for parameter in (self.parameter, other))
        if mine != theirs or shape_of(self.parameter) != shape_of(other):
            raise FreezeError(
                f"tensor '{self.name}': the other model is not distributed as the frozen one; save it and use "
                "verify_saved"
            )


def count_moved(flat: Tensor, indices: Tensor, values: Tensor) -> int:
    """Return how many of `flat[indices]` differ in bits from `values`, rounded to the dtype of `flat`."""
    found = flat[indices.to(flat.device)]
    return int((bits(found) != bits(values.to(found))).sum())
