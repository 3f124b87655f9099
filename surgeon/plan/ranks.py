"""What one of several ranks takes: memory, disk, bytes and time, from the recipe and the headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.plan.estimates import peak_memory, scratch_bytes, shape_of
from surgeon.plan.plan import Plan
from surgeon.progress import Step
from surgeon.scores.base import PIECES


@dataclass(frozen=True)
class RankNeeds:
    """What each of `ranks` takes, in bytes and seconds; every figure is an estimate or a bound.

    `read` are weights, `sent` what a rank sends to the first one while scoring: the sum of each of its pieces.
    """

    ranks: int
    memory: int
    scratch: int
    read: int
    sent: int
    seconds: float


def rank_needs(plan: Plan, ranks: int, expected: Sequence[Step] = ()) -> RankNeeds:
    """Say what each of some ranks takes; `expected` are the steps with their seconds on one."""
    shape = shape_of(plan.checkpoint)
    memory, sent, read, scratch, scored = peak_memory(plan), 0, 0, 0, 1 / ranks
    for score in plan.sampled_scores():
        pieces = len(dict.fromkeys(score.languages)) * min(PIECES, -(-score.samples // score.batch_size))
        own = -(-pieces // ranks)  # of the rank that has most of them
        scored = max(scored, own / pieces)
        scratch = max(scratch, scratch_bytes(shape, score) * own // pieces)
        read += plan.checkpoint.data_bytes * (1 + score.backward)
        if ranks > 1:
            sent += 4 * own * sum(info.numel for info in plan.scored_tensors(score))
    if ranks > 1 and sent:
        memory += 4 * (shape.total if shape.whole else shape.layer)  # a sum on its way, or one that arrives
    if plan.recipe.verify is not None:
        read += plan.checkpoint.data_bytes
    shares = {"score": scored, "write": 1 / ranks, "perplexity": 1 / ranks}
    seconds = sum(step.seconds * shares.get(step.label.split()[0], 1) for step in expected)
    return RankNeeds(ranks, memory, scratch, read, sent, seconds)
