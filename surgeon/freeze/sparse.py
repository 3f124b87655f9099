"""PEFT's sparse adapters (SHiRA) from a region, and back: what trains is a file of some megabytes.

SHiRA has `r (in + out)` entries in every linear layer, whatever its region has. The mask is filled up to that number
with entries that hold -0.0, the one value that leaves a weight as it is when it is added, and these are frozen.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgeon.errors import FreezeError
from surgeon.freeze.binding import bind_all, by_parameter
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.entries import bits
from surgeon.freeze.freezing import bundle_of, freeze
from surgeon.region.mask import Indices
from surgeon.region.region import Region


def shira(model: torch.nn.Module, source: str | Path | Bundle | Region | None = None) -> Any:
    """Return a PEFT model with a SHiRA adapter on the entries that train, in linear layers alone.

    `source` is a `train_only` bundle or a region. It trains, saves and loads as any PEFT model, and PEFT alone can load
    what it saves; `merge(peft_model, source)` puts it into the weights.

    Raises:
        FreezeError: entries train that are in no linear layer, or more than an adapter of this kind can have.
    """
    import peft

    bundle = bundle_of(model, source, train_only=True)
    wanted = _indices(model, bundle)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    places = {name: wanted.pop(id(module.weight)) for name, module in linear.items() if id(module.weight) in wanted}
    if wanted:
        other = next(name for name, parameter in model.named_parameters() if id(parameter) in wanted)
        raise FreezeError(f"tensor '{other}': SHiRA is for linear layers alone; leave it out of the region (`exclude`)")
    rank = max(math.ceil(len(at) / sum(linear[name].weight.shape)) for name, at in places.items())
    masks = {id(linear[name]): _filled(name, at, linear[name].weight, rank) for name, at in places.items()}

    def mask(layer: torch.nn.Module, *_: Any, **__: Any) -> torch.Tensor:
        made: torch.Tensor = torch.zeros_like(layer.weight).view(-1)  # type: ignore[arg-type]
        made[torch.from_numpy(masks[id(layer)]).to(made.device)] = 1
        return made.view_as(layer.weight)  # type: ignore[arg-type]

    config: Any = peft.ShiraConfig(r=rank, target_modules=list(places))
    config.mask_fn = mask
    adapted = peft.get_peft_model(model, config)
    vectors = {id(layer.base_layer): layer.shira_weight for layer in _layers(adapted)}
    padding, shapes = {}, {}
    names = {id(parameter): name for name, parameter in adapted.named_parameters()}
    for name, at in places.items():
        vector = vectors[id(linear[name])]["default"]
        rest = np.flatnonzero(~np.isin(masks[id(linear[name])], at))
        with torch.no_grad():
            vector[torch.from_numpy(rest).to(vector.device)] = -0.0
        padding[names[id(vector)]], shapes[names[id(vector)]] = rest, tuple(vector.shape)
    if any(len(rest) for rest in padding.values()):
        freeze(adapted, Region.from_indices(padding, shapes))
    return adapted


def adapter_region(model: Any, adapter: str = "default") -> Region:
    """Return the entries that the SHiRA adapter of a PEFT model changes, by the names of the model below it.

    Raises:
        FreezeError: the model has no such adapter.
    """
    layers = {id(layer.base_layer.weight): layer for layer in _layers(model) if adapter in layer.shira_weight}
    if not layers:
        raise FreezeError(f"{type(model).__name__} has no SHiRA adapter '{adapter}'")
    indices, shapes = {}, {}
    for name, parameter in model.get_base_model().named_parameters():
        if id(parameter) in layers:
            layer, name = layers[id(parameter)], name.replace(".base_layer.", ".")
            rows, columns = layer.shira_indices[adapter].long().cpu()
            vector = layer.shira_weight[adapter].detach()
            changes = (bits(vector) != bits(torch.full_like(vector, -0.0))).cpu()
            indices[name] = np.sort((rows * parameter.shape[1] + columns)[changes].numpy())
            shapes[name] = tuple(parameter.shape)
    return Region.from_indices(indices, shapes)


def _layers(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "shira_weight")]


def _indices(model: torch.nn.Module, bundle: Bundle) -> dict[int, Indices]:
    """Return the flat indices that train, by the id of their parameter."""
    if bundle.trained is None:
        raise FreezeError(f"{bundle.source}: does not say which entries train; give a `train_only` bundle or a region")
    region = bundle.trained
    tensors = {name: replace(tensor, entries=region[name].entries) for name, tensor in bundle.tensors.items()}
    chosen = bind_all(replace(bundle, region=region, tensors=tensors), dict(model.named_parameters()))
    return {id(place.parameter): indices for _, _, place, indices in by_parameter(chosen, region)}


def _filled(name: str, at: Indices, weight: torch.Tensor, rank: int) -> Indices:
    """Return the indices filled up to the number that a rank has, with the first that are not among them."""
    count = rank * sum(weight.shape)
    if count > weight.numel():
        raise FreezeError(
            f"tensor '{name}.weight': SHiRA needs {count:,} entries there to have as many as the densest layer needs, "
            f"and it has {weight.numel():,}; take a smaller region"
        )
    free = np.setdiff1d(np.arange(min(weight.numel(), count + len(at))), at, assume_unique=True)
    return np.sort(np.concatenate([at, free[: count - len(at)]]))
