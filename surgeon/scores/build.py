"""Make the regions of a plan from their scores, one group of tensors at a time, and keep them by content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.fingerprint import Fingerprint, identity, refuse_changed, tensor_hashes
from surgeon.checkpoint.sealed import is_sealed, seal
from surgeon.checkpoint.sources import cache_folder
from surgeon.plan.plan import Plan
from surgeon.plan.regions import RegionPlan
from surgeon.recipe.schema import DimensionsSpec
from surgeon.region.algebra import parse
from surgeon.region.coordinates import fullest_lines, residual_dimensions
from surgeon.region.region import Indices, Mask, Region, encode_indices
from surgeon.region.select import Scores, select_extreme, select_in_outputs, select_random
from surgeon.scores.scoring import ScoreSet

REGION_VERSION = 1  # raise it when the same scores and settings would give another region


def build_regions(
    plan: Plan, scores: Sequence[ScoreSet], jobs: int, names: Iterable[str], known: Mapping[str, Region]
) -> dict[str, Region]:
    """Return the named regions of a plan, those in `known` as they are.

    Selected ones come from the cache where it has them, derived ones after their parts.
    """
    built = dict(known)

    def build(name: str) -> Region:
        if name not in built:
            spec = plan.regions[name].spec
            if spec.combine is not None:
                expression = parse(spec.combine)
                found = expression.evaluate({part: build(part) for part in expression.names()})
            elif spec.dimensions is not None:
                found = _dimensions(build(spec.dimensions.of), spec.dimensions, plan.checkpoint.config)
            else:
                found = _build(plan, plan.regions[name], scores, jobs)
            if spec.select is None and spec.file is None:
                made = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
                found = found.only(info.name for info in plan.regions[name].tensors)
                found.metadata = {"model": plan.checkpoint.source.name, "made_from": made}
            built[name] = found
        return built[name]

    return {name: build(name) for name in names}


def _dimensions(region: Region, spec: DimensionsSpec, config: Mapping[str, Any]) -> Region:
    control = spec.seed if spec.random else None
    if spec.residual:
        return residual_dimensions(region, spec.residual, config, control)
    return fullest_lines(region, spec.rows, spec.columns, control)


def _build(plan: Plan, region: RegionPlan, scores: Sequence[ScoreSet], jobs: int) -> Region:
    if region.known is not None:
        return region.known
    score_set = next((item for item in scores if item.spec == region.score), None)
    path = _cache_path(plan, region, score_set, jobs)
    if not is_sealed(path):
        selected = _select(region, score_set)
        selected.metadata.update(_provenance(plan, region, jobs))
        selected.save(path)
        refuse_changed(plan.checkpoint)
        seal(path)
    return Region.load(path)


def _cache_path(plan: Plan, region: RegionPlan, score_set: ScoreSet | None, jobs: int) -> Path:
    assert region.select is not None
    made = Fingerprint(
        version=REGION_VERSION,
        model=identity(plan.checkpoint, jobs),
        settings={
            "provenance": _provenance(plan, region, jobs),
            "scores": [file.path.name for file in score_set.files.values()] if score_set else [],
        },
        tensors=tuple(info.name for info in region.tensors),
    )
    return cache_folder() / "regions" / f"{made.key()[:32]}.region.safetensors"


def _provenance(plan: Plan, region: RegionPlan, jobs: int) -> dict[str, Any]:
    assert region.select is not None
    hashes = tensor_hashes(plan.checkpoint, jobs, [info.name for info in region.tensors])
    return {
        "model": plan.checkpoint.source.name,
        "model_type": plan.checkpoint.config.get("model_type"),
        "revision": plan.checkpoint.source.revision,
        "select": region.select.model_dump(exclude_none=True),
        "score": None if region.score is None else region.score.model_dump(),
        "corpus": plan.corpus.name,
        "source_sha256": {info.name: hashes[info.name] for info in region.tensors},
    }


def _select(region: RegionPlan, score_set: ScoreSet | None) -> Region:
    """Return a region whose masks are computed group by group as they are asked for."""
    groups = region.groups()
    group_of = {info.name: i for i, group in enumerate(groups) for info in group}

    @lru_cache(maxsize=1)  # asked for in order, so one group at a time is enough
    def select_group(i: int) -> Mapping[str, Mask]:
        chosen = _select_group(region, [(info.name, info.numel) for info in groups[i]], score_set)
        return {info.name: encode_indices(chosen[info.name], info.shape) for info in groups[i]}

    order = sorted(region.tensors, key=lambda info: group_of[info.name])
    return Region({info.name: info.shape for info in order}, lambda name: select_group(group_of[name])[name])


def _select_group(region: RegionPlan, group: list[tuple[str, int]], score_set: ScoreSet | None) -> dict[str, Indices]:
    select = region.select
    assert select is not None
    if select.kind == "random":
        return select_random(group, select.fraction, select.seed)
    assert score_set is not None
    readers = score_set.readers
    if select.monolingual is None:
        return _cut(region, group, _summed(list(readers.values())), select.kind)
    chosen = _cut(region, group, readers[select.monolingual], "top")
    for language, reader in readers.items():
        if language != select.monolingual:
            other = _cut(region, group, reader, "top")
            chosen = {name: np.setdiff1d(chosen[name], other[name], assume_unique=True) for name in chosen}
    return chosen


def _cut(
    region: RegionPlan, group: list[tuple[str, int]], scores: Scores, kind: Literal["top", "bottom"]
) -> dict[str, Indices]:
    assert region.select is not None
    fraction = region.select.fraction
    if region.select.scope != "output":
        return select_extreme(scores, group, fraction, kind)
    axes = {name: region.places[name].output_axis for name, _ in group}
    return {name: select_in_outputs(name, scores(name), fraction, kind, axes[name]) for name, _ in group}


def _summed(readers: Sequence[Scores]) -> Scores:
    """Add the languages' scores in float32, in the recipe's order."""

    def total(name: str) -> NDArray[np.float32]:
        result = np.array(readers[0](name), dtype=np.float32)
        for reader in readers[1:]:
            result += reader(name)
        return result

    return total
