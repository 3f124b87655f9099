"""Where a cut breaks the model: the same operations in one part of the model at a time, by layer or by role.

The parts of a cut share no entry, and together they are the whole cut. A tensor in no layer, such as the embeddings or
the final norm, is in the part of its role. Stored copies of a tied weight are one tensor, in the part of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from surgeon.checkpoint.naming import ROLES, Place
from surgeon.checkpoint.ties import Ties, stored_copies
from surgeon.region.mask import united
from surgeon.region.region import Region


@dataclass(frozen=True)
class Part:
    """A variant's cut in one part alone: `by` layer or role, `label` says which, `regions` are the variant's there."""

    variant: str
    by: str
    label: str
    regions: Mapping[str, Region]

    @property
    def name(self) -> str:
        """A name that no variant has."""
        return f"{self.variant}/{self.by}/{self.label}"

    def entries(self, ties: Ties) -> int:
        """Return how many entries the regions hold together; those of stored copies of a tied weight count once."""
        copies: dict[str, list[str]] = {}
        for region in self.regions.values():
            for name in region:
                copies.setdefault(stored_copies(ties, name)[0], []).append(name)
        return sum(
            united([region.indices(name) for region in self.regions.values() for name in names if name in region]).size
            for names in copies.values()
        )


def parted(names: Iterable[str], by: str, places: Mapping[str, Place], ties: Ties) -> dict[str, list[str]]:
    """Put names of tensors into parts, which are in the order of the model."""
    parts: dict[str, list[str]] = {}
    for name in names:
        place = places[stored_copies(ties, name)[0]]
        label = str(place.layer) if by == "layer" and place.layer is not None else place.role
        parts.setdefault(label, []).append(name)
    return {label: parts[label] for label in sorted(parts, key=place_of)}


def place_of(label: str) -> tuple[int, int, str]:
    """Return what parts are sorted by: layers by number, then roles as a layer, and what is outside, has them."""
    if label.isdigit():
        return 0, int(label), label
    return 1, ROLES.index(label) if label in ROLES else len(ROLES), label


def parts_of(
    variant: str, regions: Mapping[str, Region], by: Sequence[str], places: Mapping[str, Place], ties: Ties
) -> list[Part]:
    """Return the parts of a variant's cut; none by what has a single part, which is the variant itself."""
    touched = dict.fromkeys(name for region in regions.values() for name in region if region[name].entries)
    parts = []
    for one in dict.fromkeys(by):
        labels = parted(touched, one, places, ties)
        for label, names in labels.items() if len(labels) > 1 else ():
            inside = {key: region.only([name for name in names if name in region]) for key, region in regions.items()}
            parts.append(Part(variant, one, label, inside))
    return parts
