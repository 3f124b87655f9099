"""What the regions of a recipe will be: their tensors, and at most how many entries; told from headers alone.

`include`, `exclude` and `layers` narrow a region; selectors that name nothing are told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from surgeon.anatomy.scope import Reach, scope
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import SELECTORS
from surgeon.errors import Problem, did_you_mean
from surgeon.regions.base import Planning, RegionPlan

if TYPE_CHECKING:
    from surgeon.recipe.reading import RecipeFile
    from surgeon.recipe.schema import RegionSpec


def plan_regions(file: RecipeFile, checkpoint: Checkpoint, problems: list[Problem]) -> dict[str, RegionPlan]:
    """Plan all regions, each after those it is made from; what does not fit the model is added to `problems`."""
    specs, planning = file.recipe.regions, Planning(file, checkpoint, problems)
    plans: dict[str, RegionPlan] = {}
    for name in TopologicalSorter({name: spec.kind.parents for name, spec in specs.items()}).static_order():
        plan = narrowed(planning, specs[name].kind.outline(planning, name, specs[name], plans))
        plans[name] = replace(plan, written=file.written_name(name))
    return {name: plans[name] for name in specs}


def drawn_apart(plans: Mapping[str, RegionPlan], plan: RegionPlan) -> bool:
    """True if a region that is drawn by a score needs it once more, after the pass in which it was computed.

    A region whose cut spans layers is known only when all scores have come by, and then its lowest can be drawn.
    """
    if plan.score is None or plan.select is not None:
        return False
    scopes = [plans[name].scope for name in plan.kind.parents]
    return any(scope is None or scope.spans_layers for scope in scopes)


def narrowed(planning: Planning, whole: RegionPlan) -> RegionPlan:
    """Leave out the tensors that include, exclude and layers leave out; without any, nothing."""
    spec = whole.spec
    if whole.kind.selects_itself or (not spec.include and not spec.exclude and spec.layers is None):
        return whole
    chosen = scope(planning.checkpoint, spec.include or ["*"], spec.exclude, spec.layers)
    planning.problems.extend(misnamed(planning, whole.name, spec, chosen))
    tensors = tuple(info for info in whole.tensors if info.name in chosen.places)
    known = None if whole.known is None else whole.known.only(info.name for info in tensors)
    entries = known.entries if known is not None else min(whole.entries, sum(info.numel for info in tensors))
    if entries == 0 and whole.entries > 0 and not planning.problems:
        planning.problem(("regions", whole.name), f"region '{whole.name}' selects nothing in its scope")
    return replace(whole, tensors=tensors, entries=entries, known=known)


def misnamed(planning: Planning, name: str, spec: RegionSpec, chosen: Reach) -> Iterator[Problem]:
    """Find the selectors of include and exclude that name nothing."""
    for key, selectors in (("include", spec.include), ("exclude", spec.exclude)):
        for i, selector in enumerate(selectors):
            if selector in chosen.unmatched and not (key == "exclude" and selector in SELECTORS):
                what = unmatched(planning.checkpoint, selector)
                yield planning.file.problem(("regions", name, key, i), what)


def excludes_nothing(checkpoint: Checkpoint, spec: RegionSpec) -> list[str]:
    """Return the roles that a region excludes and that the model does not have, which changes nothing."""
    unmatched_ones = scope(checkpoint, spec.include, spec.exclude, spec.layers).unmatched if spec.exclude else ()
    return [selector for selector in spec.exclude if selector in unmatched_ones and selector in SELECTORS]


def unmatched(checkpoint: Checkpoint, selector: str) -> str:
    """Say that a selector names nothing, and what may be meant."""
    if selector in SELECTORS:
        return f"the model {checkpoint.source.name} has no tensor of role '{selector}'"
    what = f"'{selector}' names no role and no tensor of {checkpoint.source.name}"
    return what + did_you_mean(selector, [*SELECTORS, *checkpoint.tensors])
