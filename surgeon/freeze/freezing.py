"""`freeze`: a model and a bundle make the `Frozen` object that keeps the promise."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgeon.errors import FreezeError
from surgeon.freeze.binding import Bound, bind, by_parameter
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.fitting import bundle_of, other_values, refusal
from surgeon.freeze.frozen import Frozen
from surgeon.freeze.held import Held
from surgeon.freeze.optimizers import refuse_unknown
from surgeon.freeze.trained import TrainedEntries
from surgeon.freeze.watch import watches_on
from surgeon.region.region import Region

logger = logging.getLogger(__name__)
_MOST = 0.1  # share of entries that train up to which these are held, and not the frozen ones


def freeze(
    model: torch.nn.Module,
    source: str | Path | Bundle | Region | None = None,
    optimizer: Any = None,
    *,
    strict: bool = True,
    check_values: bool = True,
    train_only: bool = False,
) -> Frozen:
    """Freeze the entries of a region in a model, at the values that they have now.

    Call it before or after optimizers, trainers and wrappers are made. `source` is a checkpoint folder with a `freeze/`
    bundle, a Hub id, a region file, or a `Bundle` or `Region` in memory; without one, the checkpoint that the model was
    loaded from. An `optimizer` (or a list of them) need not be given: one that is, is refused at once if it cannot be
    followed.

    `strict=False` freezes the tensors that fit and lists the others in `Frozen.skipped`. With
    `check_values=False` entries may hold other values than the bundle's base. With `train_only` a region, or its file,
    says what trains, and all else in the model is frozen; a bundle says itself which of the two it means.

    Raises:
        FreezeError: the bundle does not fit the model, or the setup is one that would break the promise.
        RegionError: the region file is damaged.
    """
    refuse_unknown(optimizer)
    bundle = bundle_of(model, source, train_only)
    return take(model, bundle, strict, check_values)


def take(
    model: torch.nn.Module, bundle: Bundle, strict: bool = True, check_values: bool = True, keep_values: bool = False
) -> Frozen:
    """Freeze by a bundle; with `keep_values` the frozen values are saved also where only a few entries train.

    Raises:
        FreezeError: see `freeze`.
    """
    _refuse_flat_parameters(model)
    frozen = {watch.owner for watch in watches_on(model) if watch.role == "model"}
    for earlier in [owner for owner in frozen if isinstance(owner, Frozen)]:
        if earlier.bundle.source == bundle.source and earlier.bundle.region == bundle.region:
            earlier.remove()  # the same again, as in a cell of a notebook that is run twice
    chosen, skipped = bind(bundle, dict(model.named_parameters(remove_duplicate=False)))
    if check_values and bundle.tensors:
        for name in list(chosen):
            reasons = [other_values(bundle, name, place) for place in chosen[name]]
            reason = next((reason for reason in reasons if reason is not None), None)
            if reason is not None:
                skipped[name] = reason
                del chosen[name]
    if skipped and (strict or not chosen):
        raise FreezeError(refusal(bundle, skipped))
    if skipped:
        logger.warning("not frozen: %s", refusal(bundle, skipped))
    return Frozen(bundle, model, _hold(bundle, chosen, keep_values), list(chosen), skipped)


def _hold(bundle: Bundle, chosen: Mapping[str, list[Bound]], keep_values: bool = False) -> list[Held]:
    """Save the frozen values; a parameter that holds several tensors gets the union of their entries.

    Where at most a tenth of the entries train, it is these that are held instead, unless values are to be kept.
    """
    few = not keep_values and _few_train(bundle, [place.parameter for places in chosen.values() for place in places])
    region = bundle.trained if few and bundle.trained is not None else bundle.region
    held: list[Held] = []
    for name, copy, place, indices in by_parameter(chosen, region):
        if few:
            known, there = math.prod(place.shape), place.parameter.numel()
            unknown = np.arange(known, there, dtype=np.int64)  # of rows that the bundle does not know
            held.append(TrainedEntries(name, place.parameter, np.concatenate([indices, unknown]), copy))
        else:
            held.append(Held(name, place.parameter, indices, copy))
    return held


def _few_train(bundle: Bundle, parameters: list[torch.nn.Parameter]) -> bool:
    """True if gradients and moments can be kept for trained entries alone: few, of parameters that are whole here."""
    if bundle.trained is None:
        return False
    if any(hasattr(parameter, mark) for parameter in parameters for mark in ("to_local", "ds_id", "_hp_mapping")):
        return False
    whole = sum(parameter.numel() for parameter in {id(parameter): parameter for parameter in parameters}.values())
    known = sum(map(math.prod, bundle.trained.shapes.values()))
    return bundle.trained.entries + max(0, whole - known) <= _MOST * whole


def _refuse_flat_parameters(model: torch.nn.Module) -> None:
    for module in model.modules():
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise FreezeError(
                "the model is wrapped by FSDP1, which flattens its parameters; "
                "use FSDP2 (fully_shard, or fsdp_version: 2 in accelerate)"
            )
