"""`freeze`: a model and a bundle make the `Frozen` object that keeps the promise."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from surgeon.errors import FreezeError
from surgeon.freeze.binding import bind
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.fitting import bundle_of, hold, other_values, refusal
from surgeon.freeze.frozen import Frozen
from surgeon.freeze.refusals import refuse_all, refuse_flat_parameters
from surgeon.freeze.watch import Watch
from surgeon.region.region import Region

logger = logging.getLogger(__name__)


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
    refuse_all(optimizer)
    bundle = bundle_of(model, source, train_only)
    return take(model, bundle, strict, check_values)


def take(
    model: torch.nn.Module, bundle: Bundle, strict: bool = True, check_values: bool = True, keep_values: bool = False
) -> Frozen:
    """Freeze by a bundle; with `keep_values` the frozen values are saved also where only a few entries train.

    Raises:
        FreezeError: see `freeze`.
    """
    refuse_flat_parameters(model)
    for earlier in _frozen_in(model):
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
    return Frozen(bundle, model, hold(bundle, chosen, keep_values), list(chosen), skipped)


def _frozen_in(model: torch.nn.Module) -> list[Frozen]:
    """Return the `Frozen` objects that watch a model now."""
    hooks = [hook for module in model.modules() for hook in module._state_dict_pre_hooks.values()]
    watches = [watch for hook in hooks if isinstance(watch := getattr(hook, "__self__", None), Watch)]
    owners = [watch.frozen for watch in watches if watch.role == "model"]
    return list({id(owner): owner for owner in owners if isinstance(owner, Frozen)}.values())
