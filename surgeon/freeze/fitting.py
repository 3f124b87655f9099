"""Which bundle is meant, and whether a model holds the values that it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from surgeon.errors import FreezeError
from surgeon.freeze.binding import Bound, bind
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.layout import TORCH_DTYPES, as_numpy, shape_of, whole_flat
from surgeon.freeze.saved import frozen_hash
from surgeon.region.mask import Mask, encode_indices
from surgeon.region.region import Region


def other_values(bundle: Bundle, name: str, place: Bound) -> str | None:
    """Say why the parameter's frozen entries are not those of the bundle; None if they are."""
    expected = bundle.tensors.get(name)
    if expected is None:
        return "was replaced after freeze(), and a bare region has no hashes to compare it by; freeze after that"
    mask = bundle.region[name]
    dense = mask.encoding == "bits"
    where = torch.from_numpy(mask.flat() if dense else mask.indices())
    with whole_flat(place.parameter) as flat:
        values = flat[place.offset : place.offset + mask.numel][where.to(flat.device)].cpu()
    if frozen_hash(as_numpy(values), expected.dtype) == expected.frozen_sha256:
        return None
    stored = TORCH_DTYPES[expected.dtype]
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
    chosen, misfits = bind(region, dict(model.named_parameters(remove_duplicate=False)))
    if misfits:
        raise FreezeError(refusal(region, misfits))
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
