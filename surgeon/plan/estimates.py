"""What a plan takes: memory at its peak, and disk. Told from headers, so both are estimates or upper bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import DTYPE_BITS
from surgeon.plan.plan import Plan
from surgeon.plan.regions import RegionPlan
from surgeon.recipe.schema import GradParamScore, SampledScore, WandaScore

_BASELINE_BYTES = 60_000_000  # the interpreter with numpy
_TORCH_BYTES = 350_000_000  # torch and transformers loaded


def bytes_to_write(write: bool | Literal["patch"], checkpoint: Checkpoint, regions: Iterable[RegionPlan]) -> int:
    """Return the bytes of the whole checkpoint, or at most those of a patch; 0 if nothing is written."""
    if write != "patch":
        return checkpoint.data_bytes if write else 0
    total = 0
    for region in regions:
        width = max((DTYPE_BITS[info.dtype] // 8 for info in region.tensors), default=0)
        total += region.entries * width + _mask_bytes(region)
    return total


def _mask_bytes(region: RegionPlan) -> int:
    return min(math.ceil(region.entries * 1.3), region.numel // 8)


def peak_memory(plan: Plan) -> int:
    """Estimate the peak of anonymous memory in bytes; mapped files are not counted, they page out."""
    checkpoint, recipe = plan.checkpoint, plan.recipe
    largest = max((info.numel for region in plan.regions.values() for info in region.tensors), default=0)
    densest = max((region.entries / max(region.numel, 1) for region in plan.regions.values()), default=0.0)
    writing = int(largest * densest) * 40
    if checkpoint.is_remote and not plan.needs_all_weights:  # a tensor on the Hub is fetched into memory
        writing += max((info.nbytes for region in plan.regions.values() for info in region.tensors), default=0)
    scores = plan.scores()
    selecting = 24 * min(largest, 1 << 22) + 12 * largest if scores else 0
    controls = [region.spec.control for region in plan.regions.values() if region.spec.control is not None]
    selecting += max((largest * (16 if spec.matched == "count" else 40) for spec in controls), default=0)
    running = [_scoring_memory(checkpoint, score, largest) for score in scores if isinstance(score, SampledScore)]
    if not running and recipe.verify is None:
        return _BASELINE_BYTES + max(writing, selecting)
    widened = 4 * sum(info.numel for info in checkpoint.tensors.values() if info.dtype != "F32")
    if recipe.verify is not None:
        running.append(_activations(checkpoint, recipe.verify.batch_size * recipe.verify.window, False))
    return _TORCH_BYTES + widened + max(*running, selecting, writing)


def _scoring_memory(checkpoint: Checkpoint, score: SampledScore, largest: int) -> int:
    backward = isinstance(score, GradParamScore)
    gradient = 4 * largest if backward else 0
    return _activations(checkpoint, score.batch_size * score.sequence_length, backward) + gradient


def _activations(checkpoint: Checkpoint, tokens: int, backward: bool) -> int:
    config = {**checkpoint.config, **(checkpoint.config.get("text_config") or {})}
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    wide = int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    vocabulary = int(config.get("vocab_size") or 0)
    kept = layers if backward else 1
    return 4 * tokens * (kept * (12 * hidden + 5 * wide) + (4 if backward else 3) * vocabulary)


def disk_needed(plan: Plan) -> int:
    """Return at most how many bytes of disk the run takes: variants, scores, regions twice, downloads."""
    variants = sum(variant.bytes_to_write for variant in plan.variants.values())
    scores = sum(
        4 * info.numel * len(dict.fromkeys(score.languages))
        for score in plan.scores()
        if isinstance(score, GradParamScore | WandaScore)
        for info in plan.scored_tensors(score)
    )
    regions = sum(_mask_bytes(region) for region in plan.regions.values())
    return variants + scores + 2 * regions + plan.bytes_to_download
