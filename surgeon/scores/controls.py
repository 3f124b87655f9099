"""Controls of selected regions, drawn tensor by tensor."""

from __future__ import annotations

import numpy as np

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.plan.plan import Plan
from surgeon.plan.regions import RegionPlan
from surgeon.recipe.score_specs import ScoreSpec
from surgeon.region.controls import draw_control
from surgeon.region.region import Indices, Region
from surgeon.region.select import Scores


def draw_like(checkpoint: Checkpoint, control: RegionPlan, of: Region, name: str, ranking: Scores | None) -> Indices:
    """Draw a control's entries of one tensor of the region it is a control of; `ranking` is what `bottom` goes by."""
    spec = control.spec.control
    assert spec is not None
    values, there = checkpoint.array(name).reshape(-1), of.indices(name)
    removed = float(np.sum(values[there].astype(np.float64) ** 2)) if spec.matched == "l2" else None
    scores = ranking(name) if spec.draw == "bottom" and ranking is not None else None
    return draw_control(name, values, there.size, spec.draw, seed=spec.seed, scores=scores, removed=removed)


def ranked_controls(plan: Plan, score: ScoreSpec) -> list[RegionPlan]:
    """Return the controls that are drawn by a score's ranking, and so need it as the regions do that select by it."""
    return [region for region in plan.regions.values() if region.spec.control is not None and region.score == score]


def is_drawn_within(plan: Plan, control: RegionPlan) -> bool:
    """True if a control can be drawn layer by layer, as what it is a control of is selected."""
    assert control.spec.control is not None
    of = plan.regions[control.spec.control.of]
    return of.select is not None and of.score == control.score and of.select.scope != "global"
