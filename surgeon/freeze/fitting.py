"""Whether a model, its values and its optimizer are such that they can be frozen; and taking hold of the entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from surgeon.checkpoint.hashing import sha256
from surgeon.errors import FreezeError
from surgeon.freeze.binding import Bound
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.entries import bits
from surgeon.freeze.held import Held, Owner
from surgeon.freeze.layout import TORCH_DTYPES, whole_flat
from surgeon.freeze.trained import MOST, TrainedEntries
from surgeon.region.region import united


def hold(bundle: Bundle, model: torch.nn.Module, chosen: Mapping[str, list[Bound]]) -> list[Held]:
    """Save the frozen values; a parameter that holds several tensors gets the union of their entries.

    Where at most a tenth of the entries train, it is these that are held instead.
    """
    by_parameter: dict[int, tuple[int, Parameter, dict[str, int]]] = {}
    for name, places in chosen.items():
        for copy, place in enumerate(places):
            entry = by_parameter.setdefault(id(place.parameter), (copy, place.parameter, {}))
            entry[2][name] = place.offset
    owners: dict[int, list[Owner]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in by_parameter:
                owners.setdefault(id(parameter), []).append((module, name))
    few = _few_train(bundle, [parameter for _, parameter, _ in by_parameter.values()])
    region = bundle.trained if few and bundle.trained is not None else bundle.region
    held: list[Held] = []
    for copy, parameter, offsets in by_parameter.values():
        parts = [region.indices(name) + offset for name, offset in offsets.items()]
        kind = TrainedEntries if few else Held
        held.append(kind(next(iter(offsets)), parameter, united(parts), copy, tuple(owners.get(id(parameter), ()))))
    return held


def _few_train(bundle: Bundle, parameters: list[Parameter]) -> bool:
    """True if gradients and moments can be kept for the trained entries alone: few, and in one process."""
    if bundle.trained is None:
        return False
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        return False
    if any(hasattr(parameter, mark) for parameter in parameters for mark in ("to_local", "ds_id", "_hp_mapping")):
        return False
    return bundle.trained.entries <= MOST * sum(parameter.numel() for parameter in parameters)


def other_values(bundle: Bundle, name: str, place: Bound) -> str | None:
    """Say why the parameter's frozen entries are not those of the bundle; None if they are."""
    expected = bundle.tensors[name]
    mask = bundle.region[name]
    dense = mask.encoding == "bits"
    where = torch.from_numpy(mask.flat() if dense else mask.indices())
    with whole_flat(place.parameter) as flat:
        values = flat[place.offset : place.offset + mask.numel][where.to(flat.device)].cpu()
    stored = TORCH_DTYPES[expected.dtype]
    cast = values.to(stored)
    exact = bool((bits(cast.to(values.dtype)) == bits(values)).all())
    if exact and sha256(bits(cast).numpy().tobytes()) == expected.frozen_sha256:
        return None
    if not _holds(values.dtype, stored):
        return (
            f"stored as {expected.dtype} but loaded as {values.dtype}, which does not hold all its values, so that "
            f"they cannot be compared: load the model with dtype={stored}, or pass check_values=False to freeze the "
            "rounded values"
        )
    base = (bundle.base or {}).get("name", bundle.source)
    return f"its frozen entries are not those of {base}: the model was made from another base, or they were trained"


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """True if one dtype holds every value of another: as fine a fraction, and as large and small an exponent."""
    larger, smaller = torch.finfo(wide), torch.finfo(narrow)
    return larger.eps <= smaller.eps and larger.max >= smaller.max and larger.tiny <= smaller.tiny


def refusal(bundle: Bundle, misfits: Mapping[str, str]) -> str:
    """Say that a bundle does not fit, with the first reason and the number of others."""
    if not misfits:
        return f"{bundle.source}: freezes nothing"
    name, reason = next(iter(misfits.items()))
    others = f" ({len(misfits)} of {len(bundle.names())} tensors do not fit)" if len(misfits) > 1 else ""
    return f"{bundle.source}: tensor '{name}': {reason}{others}"


def stepping(optimizer: Any) -> Optimizer:
    """Return an optimizer whose steps can be followed.

    Raises:
        FreezeError: they cannot.
    """
    kind = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    if not isinstance(optimizer, Optimizer):
        raise FreezeError(f"{kind} is no torch.optim.Optimizer, so its steps cannot be followed")
    if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
        raise FreezeError(
            f"{kind} swaps the weights between training and evaluation (schedule-free), outside of its steps; "
            "use an optimizer that leaves the weights alone between steps"
        )
    return optimizer


def refuse_flat_parameters(model: torch.nn.Module) -> None:
    """Refuse FSDP1.

    Raises:
        FreezeError: a part of the model is wrapped by it.
    """
    for module in model.modules():
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise FreezeError(
                "the model is wrapped by FSDP1, which flattens its parameters; "
                "use FSDP2 (fully_shard, or fsdp_version: 2 in accelerate)"
            )
