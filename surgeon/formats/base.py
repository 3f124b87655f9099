"""What formats share: what a config says of them, the stored tensors of a module, and logical ones made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Codec, Coded
from surgeon.checkpoint.storage import DTYPE_BITS, TensorInfo
from surgeon.errors import CheckpointError

COMPRESSED = "compressed-tensors"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# What a module has beside its weight and the unquantized model has not, such as scales of activations: the weight takes
# them along, so that they are copied byte for byte and never edited.
_OF_MODULE = (
    "input_scale", "input_zero_point", "input_global_scale", "input_scale_ub", "output_scale", "output_zero_point",
    "k_scale", "v_scale", "q_scale", "pre_quant_scale",
)  # fmt: skip
_OF_ATTENTION = {"k_proj": ("k_scale", "k_zero_point"), "v_proj": ("v_scale", "v_zero_point"), "q_proj": ("q_scale",)}


def coded(codec: Codec, name: str, dtype: str, shape: tuple[int, ...], parts: Mapping[str, TensorInfo]) -> Coded:
    """Return the logical tensor of some name, dtype and shape that lies in `parts`, the codes first."""
    nbytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    return Coded(name, dtype, shape, next(iter(parts.values())).path, -1, nbytes, codec, parts)


def logical_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype of the unquantized model by its config, as safetensors names it; BF16 where it says none."""
    for part in (config, config.get("text_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part.get(key), str) and part[key] in DTYPES:
                return DTYPES[part[key]]
    return "BF16"


def require_scales(tensor: Coded, info: TensorInfo, scales: NDArray[Any]) -> None:
    """Refuse scales, those of the stored tensor `info`, that are no finite positive numbers.

    Raises:
        CheckpointError: one is not.
    """
    values = scales.astype(np.float64)
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        raise CheckpointError(
            f"{info.path}: tensor '{info.name}' holds the scale {values[wrong][0]:g}, with which no weight of "
            f"'{tensor.name}' can be told; fetch the file again, or quantize the model again"
        )


def tensors_beside(stored: Mapping[str, TensorInfo], module: str) -> dict[str, TensorInfo]:
    """Return what a module's weight takes along, by last names; scales of cached keys go with projections."""
    above, _, last = module.rpartition(".")
    names = {ending: f"{module}.{ending}" for ending in _OF_MODULE}
    names |= {f"attention_{ending}": f"{above}.{ending}" for ending in _OF_ATTENTION.get(last, ())}
    return {role: stored[name] for role, name in names.items() if name in stored}


def required(
    stored: Mapping[str, TensorInfo], module: str, names: Mapping[str, str], stored_as: str
) -> dict[str, TensorInfo]:
    """Return the tensors of a module by their roles, the codes first.

    Raises:
        CheckpointError: one is missing.
    """
    codes = stored[f"{module}.{next(iter(names.values()))}"]
    for name in names.values():
        if f"{module}.{name}" not in stored:
            raise CheckpointError(
                f"{codes.path}: '{codes.name}' is stored as {stored_as}, but '{module}.{name}' is missing; fetch the "
                "files again"
            )
    return {role: stored[f"{module}.{name}"] for role, name in names.items()}


def misfit(parts: Mapping[str, TensorInfo], stored_as: str) -> CheckpointError:
    """Return the error that says which tensors do not fit each other."""
    first = next(iter(parts.values()))
    shapes = ", ".join(f"'{info.name}' {info.dtype} {list(info.shape)}" for info in parts.values())
    return CheckpointError(
        f"{first.path}: {shapes} do not fit each other as {stored_as}; fetch the files and config.json again"
    )


def require_method(settings: Mapping[str, Any], methods: Iterable[str], info: TensorInfo, stored_as: str) -> None:
    """Refuse a config that names a quantizer which does not store weights like this.

    Raises:
        CheckpointError: it does.
    """
    said = settings.get("quant_method", settings.get("format"))
    if said not in methods:
        raise CheckpointError(
            f"{info.path}: '{info.name}' is stored as {stored_as}, but the config says {str(said)[:40]!r}; fetch "
            "config.json again"
        )


def weight_groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what compressed-tensors' config says of weights, by group of layers; empty where it says nothing."""
    groups = settings.get("config_groups")
    of_each = [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
    return [group["weights"] for group in of_each if isinstance(group.get("weights"), Mapping)]


def whole(value: Any, low: int, high: int) -> bool:
    """True for a whole number within a range, both ends included."""
    return type(value) is int and low <= value <= high
