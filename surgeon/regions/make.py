"""Make the regions of a plan, each after those that it is made from; selected ones are kept by all they depend on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.fingerprint import Fingerprint, identity, is_sealed, refuse_changed, seal
from surgeon.checkpoint.store import path_of
from surgeon.errors import present
from surgeon.region.region import Region
from surgeon.regions.base import Making, Provenance, RegionPlan, Stream, made_from
from surgeon.scores.base import Reader, Score

REGION_VERSION = 4  # raise it when the same scores and settings would give another region


@dataclass(frozen=True)
class SampleSize:
    """Sequences and predicted tokens that one language was scored on."""

    sequences: int
    tokens: int


@dataclass(frozen=True)
class Scored:
    """What came of one score: `keys` name what it depends on, and `samples` the texts' sizes, by language.

    `readers` give it once more. Where scores on text were not kept there are none, and `regions` holds what was made
    by them.
    """

    score: Score
    keys: Mapping[str, str] = field(default_factory=dict)
    readers: Mapping[str, Reader] | None = None
    regions: Mapping[str, Region] = field(default_factory=dict)
    samples: Mapping[str, SampleSize] = field(default_factory=dict)


def make_regions(
    source: Provenance, scores: Sequence[Scored], names: Iterable[str], known: Mapping[str, Region]
) -> dict[str, Region]:
    """Return the named regions of a plan, those in `known` as they are."""
    regions, plans = dict(known), source.plans

    def scored(plan: RegionPlan) -> Scored | None:
        """Return the score that a region depends on: its own, or that of the region that it is drawn like."""
        every = [plan.score, *(plans[name].score for name in plan.kind.parents)]
        score = next((score for score in every if score is not None), None)
        return next((item for item in scores if item.score == score), None)

    def made(plan: RegionPlan) -> Region:
        by = scored(plan)
        if by is not None and plan.name in by.regions:  # while its score was computed
            return by.regions[plan.name]
        return plan.kind.make(making, plan)

    def part(name: str) -> Region:
        if name not in regions:
            plan, by = plans[name], scored(plans[name])
            keys = by.keys if by is not None else {}
            region = load_region(source, plan, keys) if plan.kind.kept(plans) else made(plan)
            if region is None:
                region = keep_region(source, plan, keys, made(plan))
            if not plan.kind.says_itself:
                region = region.only(info.name for info in plan.tensors)
                region.metadata = made_from(plan, source)
            regions[name] = region
        return regions[name]

    def stream(plan: RegionPlan) -> Stream:
        return stream_of(present(present(scored(plan)).readers), plan)

    making = Making(source.checkpoint, plans, part, stream)
    return {name: part(name) for name in names}


def load_region(source: Provenance, plan: RegionPlan, keys: Mapping[str, str]) -> Region | None:
    """Return a region that was made before; None if it was not, or its file is not as it was written.

    `keys` name what the scores of each language depend on.
    """
    path = _path(source, plan, keys)
    return Region.load(path) if is_sealed(path) else None


def keep_region(source: Provenance, plan: RegionPlan, keys: Mapping[str, str], region: Region) -> Region:
    """Write a region that was just made into the cache, with its provenance, and return it from there."""
    path = _path(source, plan, keys)
    region.metadata.update(plan.kind.provenance(plan, source))
    region.save(path)
    refuse_changed(source.checkpoint)
    seal(path)
    return Region.load(path)


def _path(source: Provenance, plan: RegionPlan, keys: Mapping[str, str]) -> Path:
    fingerprint = Fingerprint(
        version=REGION_VERSION,
        model=identity(source.checkpoint, source.jobs),
        settings={
            "provenance": plan.kind.provenance(plan, source),
            "scores": list(keys.values()),
            # which entries make a head, the config says
            "units": {name: [part.group, len(set(part.labels.tolist()))] for name, part in plan.parts.items()},
        },
        tensors=tuple(info.name for info in plan.tensors),
    )
    return path_of("regions", fingerprint.key(), ".region.safetensors")


class _Lazy(Mapping[str, NDArray[np.float32]]):
    """The scores of some tensors, each read, or computed, when it is looked up."""

    def __init__(self, names: Sequence[str], reader: Reader) -> None:
        self._names, self._reader = dict.fromkeys(names), reader

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self._names:
            raise KeyError(name)
        return self._reader(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stream_of(readers: Mapping[str, Reader], plan: RegionPlan) -> Stream:
    """Yield the scores of all tensors of a region, unit by unit, each language's `reader` in turn.

    Tensors that share a cut, or hold parts of one unit of the model, are in one unit: mostly a tensor, else a layer, so
    that memory is that of the sum over languages in one unit.
    """
    spans = bool(plan.parts) or (plan.scope is not None and plan.scope.spans_tensors)
    units: dict[object, list[str]] = {}
    for info in plan.tensors:
        layer = plan.places[info.name].layer
        units.setdefault(layer if spans and layer is not None else info.name, []).append(info.name)
    for unit, names in enumerate(units.values()):
        for language, reader in readers.items():
            yield unit, language, _Lazy(names, reader)
