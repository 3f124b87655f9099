"""What the regions of a recipe will be: their tensors, and at most how many entries; told from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from graphlib import TopologicalSorter

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import Problem
from surgeon.recipe.reading import RecipeFile
from surgeon.regions.base import Planning, RegionPlan, kind_of
from surgeon.regions.narrowing import narrowed


def plan_regions(file: RecipeFile, checkpoint: Checkpoint, problems: list[Problem]) -> dict[str, RegionPlan]:
    """Plan all regions, each after those it is made from; what does not fit the model is added to `problems`."""
    specs, planning = file.recipe.regions, Planning(file, checkpoint, problems)
    plans: dict[str, RegionPlan] = {}
    for name in TopologicalSorter({name: kind_of(spec).parents for name, spec in specs.items()}).static_order():
        plan = narrowed(planning, kind_of(specs[name]).outline(planning, name, specs[name], plans))
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
