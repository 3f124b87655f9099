"""Regions that are cut in the very pass in which their scores are made, so that no score needs a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.region.region import Region
from surgeon.regions.base import RegionPlan
from surgeon.regions.cut import Cut
from surgeon.scores.backward_pass import Progressed
from surgeon.scores.pass_scratch import Scratch
from surgeon.scores.score_pass import ScorePass


def cut_of(checkpoint: Checkpoint, plans: Mapping[str, RegionPlan], languages: list[str]) -> Cut:
    """Return what makes regions from a stream of scores: those that select by them, and what is drawn like these."""
    drawings = [plan.kind.drawing(checkpoint, plan, plans) for plan in plans.values()]
    selected = [plan for plan in plans.values() if plan.select is not None]
    return Cut(selected, languages, [drawing for drawing in drawings if drawing is not None])


def select_in_pass(score_pass: ScorePass, cut: Cut, key: str) -> dict[str, Region]:
    """Compute the scores and keep only the regions that are selected, or drawn, by them.

    A pass that was killed goes on: what had been made in a layer lies beside its hidden states. A cut that spans layers
    holds its candidates in memory only, so that such a pass begins anew.
    """
    shapes = score_pass.shapes
    with score_pass.scratch(key) as scratch:
        start = Progressed() if cut.spans_layers else score_pass.start(scratch)
        for layer in shapes:
            for name in cut.names if start.left is not None and layer >= start.left else ():
                found = Region.load(_part(scratch, layer, name))
                cut.take_over({name: {tensor: found[tensor] for tensor in found}})
        for layer in cut.take(score_pass.run(scratch, start)):
            for name in cut.names if scratch.resumes else ():
                cut.found(shapes[layer], name).save(_part(scratch, layer, name))
    return cut.finish()


def _part(scratch: Scratch, layer: int, region: str) -> Path:
    return scratch.folder / f"{layer}-{region}.region.safetensors"
