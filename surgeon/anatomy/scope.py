"""Which tensors a region may take entries from, and what of a checkpoint is left as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import SELECTORS, TOWERS, Place, matches, natural_key, pattern
from surgeon.checkpoint.storage import TensorInfo

_EDITABLE = {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}


@dataclass(frozen=True)
class Reach:
    """The tensors that a region may take entries from, in natural order of their names."""

    tensors: tuple[TensorInfo, ...]
    places: Mapping[str, Place]
    unmatched: tuple[str, ...]


def scope(
    checkpoint: Checkpoint,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    layers: Sequence[int] | None = None,
) -> Reach:
    """Choose tensors by role or name pattern; without `include`, all parameters of the decoder layers.

    `layers` are the first and the last layer to take from; tensors outside the layers are then left out. Buffers are
    never taken, and what the model does not have only where a role (`mtp`) or its whole name asks for it.

    `unmatched` lists the selectors that named no tensor of the model.
    """
    include, exclude = tuple(include), tuple(exclude)
    places = anatomy_of(checkpoint).places
    used: set[str] = set()

    def named_by(selectors: tuple[str, ...], name: str) -> list[str]:
        hits = [selector for selector in selectors if matches(selector, name, places[name])]
        used.update(hits)
        return hits

    chosen = []
    for name in sorted(checkpoint.tensors, key=natural_key):
        info = checkpoint.tensors[name]
        if places[name].kind == "buffer" or info.dtype not in _EDITABLE:
            continue
        named = named_by(include, name)
        if places[name].kind == "absent":
            named = [selector for selector in named if selector in SELECTORS or selector == name]
        wanted = bool(named) if include else places[name].in_decoder
        layer = places[name].layer
        wanted &= layers is None or (layer is not None and layers[0] <= layer <= layers[1])
        if not named_by(exclude, name) and wanted:
            chosen.append(info)
    unmatched = tuple(selector for selector in (*include, *exclude) if selector not in used)
    return Reach(tuple(chosen), {info.name: places[info.name] for info in chosen}, unmatched)


def unknown_kinds(checkpoint: Checkpoint) -> list[str]:
    """Return patterns of the names of tensors whose role is not known, `*` in place of layers and experts."""
    places = anatomy_of(checkpoint).places
    patterns: dict[str, None] = {}
    for name in sorted(checkpoint.tensors, key=natural_key):
        where = places[name]
        known_outside = where.kind != "parameter" or "embed" in name.split(".")[-2 if "." in name else -1]
        if where.role == "other" or (where.role == "outside" and not known_outside):
            patterns[pattern(name)] = None
    return list(patterns)


def senses(checkpoint: Checkpoint) -> list[str]:
    """Return what a model takes in beside text, by the towers that it has for it: vision, audio."""
    roles = {where.role for where in anatomy_of(checkpoint).places.values()}
    return [role for role in ("vision", "audio") if role in roles]


def left_out(checkpoint: Checkpoint, edited: Container[str] = ()) -> list[str]:
    """Say what of a checkpoint is no part of the text model's weights, and so left as it is: by kind and count.

    `edited` are the names of tensors that are changed all the same, since a region names them.
    """
    places = anatomy_of(checkpoint).places
    groups: dict[str, list[str]] = {}
    for name in sorted(checkpoint.tensors, key=natural_key):
        reason = _reason(places[name])
        if reason is not None and name not in edited:
            groups.setdefault(reason, []).append(name)
    return [
        f"{counted(names)} {f'is {reason}: left as it is' if len(names) == 1 else f'are {reason}: left as they are'}"
        for reason, names in groups.items()
    ]


def _reason(where: Place) -> str | None:
    if where.kind == "buffer":
        return "computed or counted, and trained by no gradient"
    if where.role == "mtp":
        return "for predicting several tokens at once, no part of the model that transformers builds"
    if where.kind == "absent":
        return "no part of the model that transformers builds"
    return f"of another tower ({where.role})" if where.role in TOWERS else None


def counted(names: Sequence[str]) -> str:
    """Count tensors, and show what their names have in common."""
    kinds = Counter(pattern(name) for name in names)
    shown = list(kinds)[:3]
    if len(kinds) > 3:
        heads = list(dict.fromkeys(_head(name) for name in kinds))
        shown = heads[:3] if len(heads) <= 3 else [*heads[:2], "..."]
    return f"{len(names):,} tensor{'s' if len(names) > 1 else ''} ({', '.join(shown)})"


def _head(name: str) -> str:
    parts = name.split(".")
    length = 1 if parts[0] != "model" else 2
    if len(parts) > 2 and parts[1] == "layers":
        length = 3
    return ".".join([*parts[:length], "*"])
