"""What a plan takes where the model runs on a device beside the CPU: memory on both, and bytes over the bus."""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.plan.estimates import (
    Shape,
    home_of_states,
    keeps_scores,
    model_stays,
    peak_memory,
    running_memory,
    score_bytes,
    scratch_bytes,
    shape_of,
    verified_bytes,
)
from surgeon.plan.plan import Plan
from surgeon.regions.cut import RegionCut
from surgeon.scores.base import SampledScore

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
    """Say what a plan takes on a device, from the recipe, the headers and the budgets alone."""
    shape, verify = shape_of(plan.checkpoint), plan.recipe.verify
    stays = shape.whole or model_stays(shape, device)
    passes = sum(1 + score.backward for score in plan.sampled_scores())
    states: list[tuple[int, int]] = [_states(shape, score, device) for score in plan.sampled_scores()]
    down = sum(_selected(plan, score) for score in plan.sampled_scores())
    if verify is not None:
        passes += 1 + (verify.new_tokens if verify.prompts else 0)
        size = verified_bytes(plan, shape)
        stay = home_of_states(shape, size, device) == device
        states.append((0, 0) if stay else (size * shape.layers, size * shape.layers))
        down += 4 * verify.tokens * len(plan.verify_languages) * (1 + len(plan.variants) + len(plan.parts()))
    up = plan.checkpoint.data_bytes * (min(passes, 1) if stays else passes)
    up, down = up + sum(each[0] for each in states), down + sum(each[1] for each in states)
    return DeviceNeeds(device, running_memory(plan, device), peak_memory(plan, device), up, down, stays)


def _states(shape: Shape, score: SampledScore, device: str) -> tuple[int, int]:
    """Return what hidden states and gradients that do not stay on the device take up and down."""
    size = scratch_bytes(shape, score)
    if home_of_states(shape, size, device) == device:
        return 0, 0
    if score.backward:  # states forward and again for the way back, and their gradients
        return 3 * size, 2 * size
    return size // 2 * shape.layers, size // 2 * shape.layers


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
