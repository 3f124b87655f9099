"""What a plan takes where it does not run on one CPU: on a device beside it, and in each of several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.plan.needs import (
    Running,
    keeps_scores,
    peak_memory,
    score_bytes,
    scratch_bytes,
    shape_of,
    verified_bytes,
)
from surgeon.plan.plan import Plan
from surgeon.progress import Step
from surgeon.regions.cut import RegionCut
from surgeon.scores.base import PIECES, SampledScore

_CANDIDATE = 24  # bytes of an entry of a cut over all layers: its place and key, and those that drop out later


@dataclass(frozen=True)
class DeviceNeeds:
    """Estimates in bytes: memory at its peak on the device and on the host, and what is copied `up` to it and `down`.

    `stays` says that the weights go up once; else they do for every pass forward, and every pass back.
    """

    device: str
    memory: int
    host_memory: int
    up: int
    down: int
    stays: bool


def device_needs(plan: Plan, device: str) -> DeviceNeeds:
    """Say what a plan takes on a device beside the CPU, from the recipe, the headers and the budgets alone."""
    running, verify = Running(plan, device), plan.recipe.verify
    shape, stays = running.shape, running.shape.whole or running.stays
    passes = up = down = 0
    for score in plan.sampled_scores():
        passes += 1 + score.backward
        down += _selected(plan, score)
        size = scratch_bytes(shape, score)
        if running.home_of(size) != device:
            # States forward and again for the way back, and their gradients; else those before and after each layer.
            up += 3 * size if score.backward else size // 2 * shape.layers
            down += 2 * size if score.backward else size // 2 * shape.layers
    if verify is not None:
        passes += 1 + (verify.new_tokens if verify.prompts else 0)
        size = verified_bytes(plan, shape)
        moved = 0 if running.home_of(size) == device else size * shape.layers
        up += moved
        down += moved + 4 * verify.tokens * len(plan.verify_languages) * (1 + len(plan.variants) + len(plan.parts()))
    up += plan.checkpoint.data_bytes * (min(passes, 1) if stays else passes)
    return DeviceNeeds(device, running.memory, peak_memory(plan, device), up, down, stays)


def _selected(plan: Plan, score: SampledScore) -> int:
    """Return what comes down of scores: all if they are kept; else masks, a bit an entry, if cut on the device.

    Of what is drawn beside a region, such as a control, the sums come down.
    """
    if keeps_scores(plan, score):
        return score_bytes(plan.scored_tensors(score), score)
    total = 0
    for region in plan.regions.values():
        if region.score != score:
            continue
        if region.kind.drawing(plan.checkpoint, region, plan.regions) is not None:
            total += 4 * region.numel
        elif region.select is not None:
            cut = RegionCut(region, score.labels)
            masks = _CANDIDATE * region.entries if cut.scope.spans_layers else region.numel // 8
            total += (masks if not region.parts else 4 * region.numel) * len(cut.labels)
    return total


@dataclass(frozen=True)
class RankNeeds:
    """What each of `ranks` processes takes, in bytes and seconds; every figure is an estimate or a bound.

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
