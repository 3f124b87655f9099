"""What one of several ranks takes: memory, disk, bytes and time, from the recipe and the headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.plan.estimates import peak_memory, scratch_bytes, shape_of
from surgeon.plan.plan import Plan
from surgeon.progress import Step

_ROWS_BEHIND = 3  # of hidden states, that are kept longer where ranks must be able to go on together
_SHARED = ("score", "write", "perplexity")  # how the steps begin whose work is spread over ranks


@dataclass(frozen=True)
class RankNeeds:
    """What each of `ranks` takes, in bytes and seconds; every figure is an estimate or a bound.

    `read` are weights, `sent` what a rank sends to others while scoring: finished scores of a language to the rank
    that selects in the layer, and sums that go on with the next batches.
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
    memory, sent, read = peak_memory(plan), 0, 0
    sampled = plan.sampled_scores()
    largest = max((scratch_bytes(shape, score) for score in sampled), default=0)
    for score in sampled:
        languages = len(dict.fromkeys(score.languages))
        entries = sum(info.numel for info in plan.scored_tensors(score))
        read += plan.checkpoint.data_bytes * (1 + score.backward)
        if ranks > 1:
            # A rank's batches lie next to one another; of each of their languages it sends the sum once, done or not.
            sent += 4 * entries * min(languages, -(-languages // ranks) + 1)
    if ranks > 1 and sent:
        memory += 8 * (shape.total if shape.whole else shape.layer)  # a sum on its way, and scores that arrive
    if plan.recipe.verify is not None:
        read += plan.checkpoint.data_bytes
    rows = shape.layers + 3
    scratch = largest * (rows + _ROWS_BEHIND * (ranks > 1)) // rows // ranks
    seconds = sum(step.seconds / (ranks if step.label.startswith(_SHARED) else 1) for step in expected)
    return RankNeeds(ranks, memory, scratch, read, sent, seconds)
