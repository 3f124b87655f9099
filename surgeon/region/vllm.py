"""A patch for a running vLLM: its own `CheckpointWeightPatch`es, in checkpoint coordinates as ours are.

vLLM applies them through the model's weight loader, so that tensor parallelism and fused parameters are its business.
It marks what stays by not-a-numbers, so that a patch can carry none; and it does not go back if it fails halfway.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.errors import RegionError
from surgeon.region.patch import Patch

if TYPE_CHECKING:
    import torch


class WeightPatch(NamedTuple):
    """What vLLM calls a `CheckpointWeightPatch`, field for field; for where vLLM itself is not installed.

    `values` (1-D, of `dtype`) are new values at the flat `indices` (1-D, int64) of the checkpoint's tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: torch.Tensor
    indices: torch.Tensor | None = None


def weight_patches(path: str | Path) -> Iterator[Any]:
    """Yield a patch file's tensors as vLLM takes them, for `load_checkpoint_weight_patches(model, patches)`.

    They are vLLM's own `CheckpointWeightPatch` if it is installed, else `WeightPatch`. The server must run the base
    that the patch was made for; here nobody can see to that (`surgeon inspect` says which it is).

    Raises:
        RegionError: the file is no patch, or holds what vLLM cannot take: not-a-numbers, or integers.
    """
    import numpy as np

    from surgeon.checkpoint.torch_files import as_tensor

    patch = Patch.load(path)
    make = _their_class()
    for name in patch.tensors:
        values = as_tensor(np.array(patch.values(name)))  # a copy, contiguous and writable
        if not values.is_floating_point():
            raise RegionError(f"{path}: tensor '{name}' is {values.dtype}; vLLM patches floating-point tensors only")
        if bool(values.isnan().any()):
            raise RegionError(f"{path}: tensor '{name}' gets not-a-numbers, by which vLLM marks what stays unchanged")
        indices = as_tensor(np.array(patch.region.indices(name)))
        yield make(name=name, shape=patch.tensors[name].shape, dtype=values.dtype, values=values, indices=indices)


def _their_class() -> Any:
    try:
        from vllm.model_executor.model_loader.checkpoint_weight_patch import CheckpointWeightPatch
    except ImportError:
        return WeightPatch
    return CheckpointWeightPatch
