"""Which parameter of a model, or which part of one, is which tensor on disk.

A bundle says where its tensors stand in the model class (experts, separate on disk, are parts of a fused
parameter); a model that names them as the disk does is taken as well. Trainers wrap models (`module.`,
`_orig_mod.`), users hold them in modules of their own (`net.`), and model classes add or drop a leading
`model.`. One rule covers that: segments that wrappers insert are ignored, and otherwise all names differ by
one prefix, the same for every tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.nn import Parameter

from surgeon.checkpoint.ties import stored_copies
from surgeon.errors import FreezeError
from surgeon.freeze.bundle import Bundle, allowed_shapes
from surgeon.freeze.layout import is_plain, shape_of
from surgeon.region.mask import Indices, united
from surgeon.region.region import Region

# Inserted by torch.compile, activation checkpointing, Fabric and PEFT: `base_layer` holds the weight that LoRA adds to,
# and beside `original_module`, which no longer trains, `modules_to_save.ADAPTER` is what does.
_SEGMENTS = (
    "_orig_mod", "_checkpoint_wrapped_module", "_forward_module", "_original_module", "base_layer", "original_module",
    r"modules_to_save\.[^.]+",
)  # fmt: skip
_INSERTED = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(_SEGMENTS)})\.")
_Prefix = tuple[str, str]  # what to drop, what to add


@dataclass(frozen=True, eq=False)
class Bound:
    """A tensor of the bundle in a model: the entries of `parameter` from flat index `offset` on."""

    parameter: Parameter
    shape: tuple[int, ...]
    offset: int = 0


def bind(bundle: Bundle, parameters: Mapping[str, Parameter]) -> tuple[dict[str, list[Bound]], dict[str, str]]:
    """Find each tensor of the bundle in the model; returns the places, and the reasons for tensors without any.

    A tensor with tied names is bound to every distinct parameter that bears one of them, so that it stays
    frozen also in a model that unties them; the same holds for a module that PEFT copied to train it. A parameter may
    have more rows than the bundle's, as an enlarged vocabulary makes: the rows beyond are no part of the bundle.

    Raises:
        FreezeError: the names fit several parts of the model equally well.
    """
    places = _places(bundle, parameters)
    chosen: dict[str, list[Bound]] = {}
    misfits: dict[str, str] = {}
    # A bare region has no hashes to tell an enlarged model from another one, so that there no tensor may have grown.
    known = [place for found in places.values() for place in found] if bundle.tensors else []
    allowed = allowed_shapes((place.shape, shape_of(place.parameter)) for place in known)
    for name in bundle.names():
        found = [place for alias in stored_copies(bundle.ties, name) for place in places.get(alias, ())]
        distinct = list({id(place.parameter): place for place in found}.values())
        odd = next((place for place in distinct if shape_of(place.parameter) not in allowed(place.shape)), None)
        if not distinct:
            misfits[name] = "the model has no parameter of that name"
        elif odd is not None:
            misfits[name] = (
                f"its shape is {list(shape_of(odd.parameter))} in the model and {list(odd.shape)} in the bundle"
            )
        elif not all(place.parameter.is_floating_point() for place in distinct):
            misfits[name] = f"the model holds it quantized, as {distinct[0].parameter.dtype}"
        elif not all(is_plain(place.parameter) for place in distinct):
            kind = type(distinct[0].parameter.data).__name__
            misfits[name] = f"the model holds it as {kind}, of which no entry can be written alone"
        else:
            chosen[name] = distinct
    return chosen, misfits


def bind_all(bundle: Bundle, parameters: Mapping[str, Parameter]) -> dict[str, list[Bound]]:
    """Find all tensors of the bundle in the model.

    Raises:
        FreezeError: one has no place there, or the names fit several parts of the model equally well.
    """
    chosen, misfits = bind(bundle, parameters)
    if misfits:
        raise FreezeError(refusal(bundle, misfits))
    return chosen


def refusal(bundle: Bundle, misfits: Mapping[str, str]) -> str:
    """Say that a bundle does not fit, with the first reason and the number of others."""
    if not misfits:
        return f"{bundle.source}: freezes nothing"
    name, reason = next(iter(misfits.items()))
    others = f" ({len(misfits)} of {len(bundle.names())} tensors do not fit)" if len(misfits) > 1 else ""
    return f"{bundle.source}: tensor '{name}': {reason}{others}"


def by_parameter(chosen: Mapping[str, Sequence[Bound]], region: Region) -> Iterator[tuple[str, int, Bound, Indices]]:
    """Yield each bound parameter once, with the union of the entries that its tensors have in a region.

    First come the name of the first of these tensors, and the parameter's number among those that bear it.
    """
    parts: dict[int, list[tuple[str, int, Bound]]] = {}
    for name, places in chosen.items():
        for copy, place in enumerate(places):
            parts.setdefault(id(place.parameter), []).append((name, copy, place))
    for several in parts.values():
        name, copy, place = several[0]
        yield name, copy, place, united([region.indices(other) + part.offset for other, _, part in several])


def _places(bundle: Bundle, parameters: Mapping[str, Parameter]) -> dict[str, list[Bound]]:
    """Bind every name of the bundle, tied ones included: as the model class names it, else as it is on disk."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in bundle.names():
        shapes |= dict.fromkeys(stored_copies(bundle.ties, name), bundle.region.shapes[name])
    in_class = {name: tensor.place.name for name, tensor in bundle.tensors.items() if tensor.place}
    places: dict[str, list[Bound]] = {}
    for name, partners in match_all(sorted(shapes), parameters, in_class).items():
        place = bundle.tensors[name].place if name in in_class else None
        shape, offset = (place.shape, place.offset) if place else (shapes[name], 0)
        places[name] = [Bound(parameters[partner], shape, offset) for partner in partners]
    renamed = sorted(name for name in shapes if name not in places and in_class.get(name, name) != name)
    for name, partners in match_all(renamed, parameters, {}).items():
        places[name] = [Bound(parameters[partner], shapes[name]) for partner in partners]
    return places


def match_all(stored: Iterable[str], model: Iterable[str], hints: Mapping[str, str]) -> dict[str, list[str]]:
    """Map names on disk to all names in the model that are the same but for what wrappers insert.

    A name without a partner is left out. `hints` gives the name in the model class where a bundle knows it to differ
    from the one on disk.

    Raises:
        FreezeError: two prefixes fit equally well, as in a module that holds a student and a teacher.
    """
    plain: dict[str | None, list[str]] = {}
    for name in model:
        plain.setdefault(_INSERTED.sub("", name), []).append(name)
    wanted = {name: hints.get(name, name) for name in stored}
    fits = {
        prefix: [name for name, hint in wanted.items() if _shift(hint, prefix) in plain]
        for prefix in _candidates(wanted.values(), plain)
    }
    best = max(len(names) for names in fits.values())
    winners = [prefix for prefix, names in fits.items() if len(names) == best]
    if best and len(winners) > 1 and winners[0] != ("", ""):
        shown = " and ".join(f"'{added}'" for _, added in winners[:2])
        raise FreezeError(
            f"the model holds the tensors to freeze more than once, under {shown}; pass the submodule that is trained"
        )
    return {name: plain[_shift(wanted[name], winners[0])] for name in fits[winners[0]]}


def _shift(name: str, prefix: _Prefix) -> str | None:
    dropped, added = prefix
    return added + name.removeprefix(dropped) if name.startswith(dropped) else None


def _candidates(stored: Iterable[str], model: Iterable[str | None]) -> list[_Prefix]:
    """Return the prefixes, no change first, by which one of a few names fits some parameter."""
    found: dict[_Prefix, None] = {("", ""): None}
    # The longest names are the most specific: a bare `weight` would fit anywhere.
    for probe in sorted(stored, key=len, reverse=True)[:8]:
        for name in filter(None, model):
            if name.endswith("." + probe):
                found["", name.removesuffix(probe)] = None
            elif probe.endswith("." + name):
                found[probe.removesuffix(name), ""] = None
    return list(found)
