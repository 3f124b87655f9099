"""Make the regions of a plan from their scores, one group of tensors at a time, and keep them by content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.plan.plan import Plan
from surgeon.plan.regions import RegionPlan
from surgeon.recipe.schema import DimensionsSpec
from surgeon.region.algebra import parse
from surgeon.region.coordinates import fullest_lines, residual_dimensions
from surgeon.region.region import Mask, Region, encode_indices
from surgeon.region.select import Scores
from surgeon.scores.controls import draw_like
from surgeon.scores.region_cache import keep_region, load_region
from surgeon.scores.scoring import ScoreSet
from surgeon.scores.selection import select_group, summed


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
                found = _dimensions(build(spec.dimensions.of), spec.dimensions, plan.checkpoint)
            elif spec.control is not None:
                found = _control(plan, plan.regions[name], build(spec.control.of), scores, jobs)
            else:
                found = _build(plan, plan.regions[name], scores, jobs)
            if spec.select is None and spec.file is None:
                made = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
                found = found.only(info.name for info in plan.regions[name].tensors)
                found.metadata = {"model": plan.checkpoint.source.name, "made_from": made}
            built[name] = found
        return built[name]

    return {name: build(name) for name in names}


def _dimensions(region: Region, spec: DimensionsSpec, checkpoint: Checkpoint) -> Region:
    control = spec.seed if spec.random else None
    if spec.residual:
        places = anatomy_of(checkpoint).places
        return residual_dimensions(region, spec.residual, checkpoint.config, control, places)
    return fullest_lines(region, spec.rows, spec.columns, control)


def _control(plan: Plan, region: RegionPlan, of: Region, scores: Sequence[ScoreSet], jobs: int) -> Region:
    """Draw a control, tensor by tensor; one of a selected region is kept as that is."""
    assert region.spec.control is not None
    source = plan.regions[region.spec.control.of]
    # A control depends on whatever its region's entries do, also where it is not drawn by their scores itself.
    score_set = next((item for item in scores if item.spec == source.score), None)
    keys, is_kept = score_set.keys if score_set is not None else {}, source.select is not None
    kept = load_region(plan, region, keys, jobs) if is_kept else None
    if kept is not None:
        return kept
    if score_set is not None and region.name in score_set.regions:
        drawn = score_set.regions[region.name]
    else:
        ranking = summed(list(score_set.readers.values())) if score_set is not None and score_set.readers else None
        drawn = Region(
            of.shapes,
            lambda name: encode_indices(draw_like(plan.checkpoint, region, of, name, ranking), of.shapes[name]),
        )
    return keep_region(plan, region, keys, jobs, drawn) if is_kept else drawn


def _build(plan: Plan, region: RegionPlan, scores: Sequence[ScoreSet], jobs: int) -> Region:
    if region.known is not None:
        return region.known
    score_set = next((item for item in scores if item.spec == region.score), None)
    keys = score_set.keys if score_set is not None else {}
    kept = load_region(plan, region, keys, jobs)
    if kept is not None:
        return kept
    if score_set is not None and region.name in score_set.regions:
        selected = score_set.regions[region.name]
    else:
        selected = _select(region, score_set.readers if score_set is not None else {})
    return keep_region(plan, region, keys, jobs, selected)


def _select(region: RegionPlan, readers: Mapping[str, Scores]) -> Region:
    """Return a region whose masks are computed group by group as they are asked for."""
    groups = region.groups()
    group_of = {info.name: i for i, group in enumerate(groups) for info in group}

    @lru_cache(maxsize=1)  # asked for in order, so one group at a time is enough
    def select(i: int) -> Mapping[str, Mask]:
        chosen = select_group(region, groups[i], readers)
        return {info.name: encode_indices(chosen[info.name], info.shape) for info in groups[i]}

    order = sorted(region.tensors, key=lambda info: group_of[info.name])
    return Region({info.name: info.shape for info in order}, lambda name: select(group_of[name])[name])
