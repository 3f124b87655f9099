"""Stored tensors of a module: those that its weight is made of, and those that it takes along.

Scales of activations and the like the unquantized model does not have, so the weight takes them along: they are copied
byte for byte and never edited.
"""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import CheckpointError

_OF_MODULE = (
    "input_scale", "input_zero_point", "input_global_scale", "input_scale_ub", "output_scale", "output_zero_point",
    "k_scale", "v_scale", "q_scale", "pre_quant_scale",
)  # fmt: skip
_OF_ATTENTION = {"k_proj": ("k_scale", "k_zero_point"), "v_proj": ("v_scale", "v_zero_point"), "q_proj": ("q_scale",)}


def tensors_beside(stored: Mapping[str, TensorInfo], module: str) -> dict[str, TensorInfo]:
    """Return them by their last names; scales of the cache of keys and values go with the projections."""
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
