"""Stored tensors of a module that are neither codes nor scales of its weight, such as scales of its activations.

The unquantized model has none of them, so the weight takes them along: they are copied byte for byte and never edited.
"""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.checkpoint.storage import TensorInfo

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
