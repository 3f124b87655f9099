"""`freeze`: a model and a bundle make the `Frozen` object that keeps the promise; `merge` keeps it for an adapter."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgeon.errors import FreezeError
from surgeon.freeze.binding import Bound, bind, bind_all, by_parameter, refusal
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.frozen import Frozen
from surgeon.freeze.held import Held
from surgeon.freeze.hooks import refuse_unknown
from surgeon.freeze.layout import shape_of
from surgeon.freeze.saved import other_values
from surgeon.freeze.trained import TrainedEntries
from surgeon.freeze.watch import watches_on
from surgeon.region.mask import Mask, encode_indices
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


def merge(
    model: Any, source: str | Path | Bundle | Region | None = None, *, train_only: bool = False, **options: Any
) -> Any:
    """Merge a PEFT model's adapter with the mask honoured, `W + (1 - M) * dW`; returns the plain model.

    The adapter is trained as ever: it never writes to the base weights, which hold their bits until the merge.
    The merged model is therefore not quite the one that was trained, where the adapter acted inside the region
    too; measure it. `train_only`, `strict` and `check_values` are those of `freeze`.

    Raises:
        FreezeError: not a PEFT model, its adapter is merged already, or the bundle does not fit.
    """
    if not hasattr(model, "merge_and_unload"):
        raise FreezeError(f"{type(model).__name__} is no PEFT model with an adapter that can be merged")
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise FreezeError("the adapter is merged already, so the base values are gone; call unmerge_adapter() first")
    frozen = take(model, bundle_of(model, source, train_only), **options, keep_values=True)
    merged = model.merge_and_unload()
    kept = frozen.restore(merged)
    frozen.verify(merged)
    frozen.remove()
    logger.info("merged the adapter outside of %d frozen entries, which keep the base's values", kept)
    return merged


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


def bundle_of(model: torch.nn.Module, source: str | Path | Bundle | Region | None, train_only: bool) -> Bundle:
    """Return the bundle that is meant: in memory, from a file, or of the checkpoint that the model was loaded from.

    Raises:
        FreezeError: there is none, or `train_only` is asked of one that says itself what trains.
    """
    if source is None:
        bundle = source_of(model)
    elif isinstance(source, Region):
        bundle = Bundle(source, {})
    else:
        bundle = source if isinstance(source, Bundle) else Bundle.load(source)
    if not train_only or bundle.trained is not None:
        return bundle
    if bundle.tensors:
        raise FreezeError(f"{bundle.source}: names entries that are frozen, so it is not for `train_only`")
    return _all_but(bundle, model)


def _all_but(region: Bundle, model: torch.nn.Module) -> Bundle:
    """Return a bundle that freezes every entry of a model but those of a region."""
    chosen = bind_all(region, dict(model.named_parameters(remove_duplicate=False)))
    names = {id(place.parameter): name for name, places in chosen.items() for place in places}
    inside = {name: names.get(id(parameter)) for name, parameter in model.named_parameters()}
    shapes = {name: shape_of(p) for name, p in model.named_parameters() if p.is_floating_point()}
    nothing = np.empty(0, dtype=np.int64)

    def trained(name: str) -> Mask:
        known = inside[name]
        return encode_indices(nothing, shapes[name]) if known is None else region.region[known]

    said = Region(shapes, trained)
    return Bundle(~said, {}, source=region.source, trained=said)


def source_of(model: torch.nn.Module) -> Bundle:
    """Load the bundle of the checkpoint that a model was loaded from, by its `name_or_path`.

    Raises:
        FreezeError: the model does not say where it is from, or there is no bundle there.
    """
    for module in model.modules():
        name = getattr(module, "name_or_path", None)
        if isinstance(name, str) and name:
            return Bundle.load(name, getattr(getattr(module, "config", None), "_commit_hash", None))
    raise FreezeError("the model does not say from which checkpoint it was loaded: give freeze(model, BUNDLE)")
