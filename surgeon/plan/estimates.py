"""What a plan takes: memory at its peak, and disk. Told from headers, so both are estimates or upper bounds.

The model goes through layer by layer, so that memory is a few of its largest layers in float32, one batch's
activations in one layer, and what `model/budgets.py` allows; only a model that is no plain stack is held whole.
What is told of memory is no less than what a run takes, and at most a quarter more: tests/plan/test_estimates.py
measures it on Linux. The first five numbers below are from such runs; the others follow from arithmetic.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded
from surgeon.checkpoint.config import of_text, whole_number
from surgeon.checkpoint.quantized import written_bytes
from surgeon.checkpoint.storage import DTYPE_BITS, TensorInfo
from surgeon.checkpoint.store import cache_folder
from surgeon.model import budgets
from surgeon.model.prospect import known_prospect
from surgeon.operations import Operation
from surgeon.operations.edits import Surgery
from surgeon.plan.plan import Plan
from surgeon.recipe.schema import VerifySpec
from surgeon.regions.base import RegionPlan
from surgeon.regions.outlines import drawn_apart
from surgeon.scores.base import SampledScore, Score

_BASELINE_BYTES = 60_000_000  # the interpreter with numpy
_TORCH_BYTES = 350_000_000  # torch, transformers and a tokenizer loaded
_BETWEEN_BYTES = 1 << 27  # of blocks between and beside those in use, which the C library has ready for the next batch
_WASTED_BYTES = 100_000_000  # at most, since blocks are not cut to measure: some per cent more than asked for
_DRAWING_BYTES = 160_000_000  # the figures of the page
SHARE_OF_DISK = 0.05  # scores that take more of what is free are not kept, unless asked for
_ENCODED_BYTES = 80  # for each entry of a block that gets another scale: places, codes and values before and after
_CUT_BYTES = 24  # for each score that a cut looks at: its key, its place, and both once more in their order
_AT_A_TIME = 1 << 22  # scores that a cut looks at


@dataclass(frozen=True)
class Shape:
    """What memory depends on in a model. `layer` and `outer` are the entries of the largest layer, and of the larger
    part outside: embedding or head; `mapped` says that the files hold float32, so that weights need no copies."""

    layers: int
    layer: int
    outer: int
    total: int
    mapped: bool
    hidden: int
    wide: int
    vocabulary: int
    whole: bool


def shape_of(checkpoint: Checkpoint) -> Shape:
    """Read off the headers and the config what memory depends on."""
    config = of_text(checkpoint.config)
    sizes: Counter[int] = Counter()
    outside: Counter[str] = Counter()
    places = anatomy_of(checkpoint).places
    for info in checkpoint.tensors.values():
        where = places[info.name]
        if where.in_decoder and where.layer is not None:
            sizes[where.layer] += info.numel
        else:
            outside["head" if where.role == "head" else "rest"] += info.numel
    hidden, known = whole_number(config, "hidden_size", "n_embd"), known_prospect(checkpoint)
    return Shape(
        len(sizes),
        max(sizes.values(), default=0),
        max(outside.values(), default=0),
        sum(info.numel for info in checkpoint.tensors.values()),
        all(info.dtype == "F32" for info in checkpoint.tensors.values()),
        hidden,
        whole_number(config, "intermediate_size", "n_inner") or 4 * hidden,
        whole_number(config, "vocab_size"),
        not sizes or (known is not None and known.whole),
    )


def bytes_to_write(write: bool | Literal["patch"], checkpoint: Checkpoint, regions: Iterable[RegionPlan]) -> int:
    """Return the bytes of the whole checkpoint, or at most those of a patch; 0 if nothing is written."""
    if write != "patch" and write:
        return written_bytes(checkpoint)
    if not write:
        return 0
    total = 0
    for region in regions:
        width = max((DTYPE_BITS[info.dtype] // 8 for info in region.tensors), default=0)
        total += region.entries * width + _mask_bytes(region)
    return total


def _mask_bytes(region: RegionPlan) -> int:
    """Return at most the bytes of a region's file: a bit an entry, or a byte an entry selected and some of 255."""
    return min(math.ceil(region.entries * 1.3), region.numel // 8)


def peak_memory(plan: Plan, device: str = "cpu") -> int:
    """Estimate the peak of the host's anonymous memory in bytes; mapped files are not counted, they page out.

    What running the model takes is the host's where the `device` is the CPU; else the host holds hidden states that
    the device has no room for, and two layers' weights on their way.
    """
    selecting = max((_selecting(plan, score) for score in plan.scores()), default=0)
    beside = max(_editing(plan), selecting, _DRAWING_BYTES)
    if not plan.runs_model:
        return _BASELINE_BYTES + beside
    shape = shape_of(plan.checkpoint)
    if device == "cpu":
        taken = max(running_memory(plan), beside + (_resident(shape, device) or 0))
    else:
        states = [*(scratch_bytes(shape, score) for score in plan.sampled_scores()), verified_bytes(plan, shape)]
        on_host = [size for size in states if home_of_states(shape, size, device) == "cpu"]
        taken = beside + max(on_host, default=0) + 8 * shape.layer
    return _TORCH_BYTES + taken + min(taken // 20, _WASTED_BYTES)


def running_memory(plan: Plan, device: str = "cpu") -> int:
    """Estimate what running the model takes of a device's memory: weights, states, sums, activations, logits."""
    shape, verify = shape_of(plan.checkpoint), plan.recipe.verify
    resident = _resident(shape, device)
    running = [_scoring(plan, shape, score, resident, device) for score in plan.sampled_scores()]
    if verify is not None:
        models = 1 + len(plan.variants) + len(plan.parts())
        # A model that was scored in its own dtype still lies on the device, beside the one in float32.
        native = device != "cpu" and any(score.dtype == "native" for score in plan.sampled_scores())
        before = plan.checkpoint.data_bytes if native and resident is not None else 0
        running.append(before + _verifying(shape, verify, len(plan.verify_languages), models, resident, device))
        if verify.prompts and resident is None:
            held = min(budgets.EDIT_BYTES_PER_ENTRY * edited_entries(plan), budgets.EDITS_BYTES)
            running.append(8 * shape.layer + held)
    return max(running, default=0)


def model_stays(shape: Shape, device: str = "cpu") -> bool:
    """True if the weights stay in a device's memory once they are there."""
    return 4 * shape.total <= budgets.resident_bytes(device)


def home_of_states(shape: Shape, size: int, device: str) -> str | None:
    """Return where so many bytes of hidden states stay, see `budgets.home_of_hidden`."""
    outside = shape.total - shape.layers * shape.layer
    model = budgets.ModelSize(
        budgets.memory(device), shape.total, max(shape.layer, outside), model_stays(shape, device)
    )
    return budgets.home_of_hidden(size, device, model)


def _resident(shape: Shape, device: str) -> int | None:
    """Return what weights take that stay; None if they come and go. On a CPU what is mapped takes nothing."""
    if shape.mapped and device == "cpu":
        return 0
    return 4 * shape.total if shape.whole or model_stays(shape, device) else None


def edited_entries(plan: Plan) -> int:
    """Return at most how many entries all variants together edit."""
    labels = [label for spec in plan.recipe.variants.values() for done in spec.operations for label in done.regions]
    return sum(plan.regions[label].entries for label in labels)


def _editing(plan: Plan) -> int:
    """Return what an edit of one tensor takes."""
    tensors = [info for region in plan.regions.values() for info in region.tensors]
    largest = max((info.numel for info in tensors), default=0)
    densest = max((region.entries / max(region.numel, 1) for region in plan.regions.values()), default=0.0)
    fetched = 0
    if plan.checkpoint.is_remote and not plan.needs_all_weights:  # a tensor on the Hub is fetched into memory
        fetched = max((info.nbytes for info in tensors), default=0)
    done = [operation.bytes_per_entry for variant in plan.recipe.variants.values() for operation in variant.operations]
    edit = int(largest * densest) * max(done, default=Operation.bytes_per_entry)
    return edit + fetched + _ENCODED_BYTES * _encoded_entries(plan)


def _encoded_entries(plan: Plan) -> int:
    """Return at most how many entries of one tensor are encoded anew, all those of blocks that get another scale."""
    most = 0
    for name, variant in plan.recipe.variants.items():
        surgery = Surgery(plan.source_of(name), variant.operations, {})
        for region in {label: plan.regions[label] for done in variant.operations for label in done.regions}.values():
            for info in region.tensors:
                if isinstance(info, Coded) and len(surgery.stored(info.name)) > 1:
                    chosen = math.ceil(info.numel * region.entries / region.numel)
                    most = max(most, min(info.numel, chosen * math.ceil(info.numel / info.codec.blocks(info))))
    return most


def _selecting(plan: Plan, score: Score) -> int:
    """Return what cuts and draws from one score take beside the scores themselves."""
    largest = max((info.numel for info in plan.scored_tensors(score)), default=0)
    drawn = max((region.kind.bytes_to_make(largest) for region in plan.regions.values()), default=0)
    compared = score.bytes_per_entry * largest
    summed = any(region.score == score and region.parts for region in plan.regions.values())
    return _CUT_BYTES * min(largest, _AT_A_TIME) + 2 * largest + max(drawn, compared, 8 * largest if summed else 0)


def _scoring(plan: Plan, shape: Shape, score: SampledScore, resident: int | None, device: str) -> int:
    """A layer with its gradients and the scores of the language before; or the head with a chunk of its logits.

    On the way forward there is the next layer, which is read ahead. Where scores are not kept there are also their
    sums over several languages. In one go there are all layers at once, and no hidden states between them.
    """
    if scores_in_one_go(plan, score, device):
        return _in_one_go(plan, shape, score, device)
    tokens, backward = score.batch_size * score.sequence_length, score.backward
    unit = 4 * (shape.total if shape.whole else shape.layer)
    widened = resident if resident is not None else unit
    # The scores of one tensor are made of its weights and its sum, each once more in float32.
    of_one_tensor = 8 * max((info.numel for info in plan.scored_tensors(score)), default=0) if backward else 0
    summed = widened + (1 + _sums(plan, score)) * unit + of_one_tensor
    layer = max(widened + unit, summed) + _activations(shape, tokens, backward)
    return max(layer, _head(shape, tokens, 4 if backward else 3, resident, device)) + _hidden(shape, score, device)


def _sums(plan: Plan, score: SampledScore) -> int:
    """Return how many sums there are of what is scored at a time: of a piece, of those before it, of languages."""
    several = len(dict.fromkeys(score.languages)) > 1
    of_pieces = 1 + (score.samples > score.batch_size) if score.backward else 0
    return of_pieces + (several and not keeps_scores(plan, score))


def scores_in_one_go(plan: Plan, score: SampledScore, device: str = "cpu") -> bool:
    """True if a score goes forward and back through all layers at once, batch by batch, and needs no second forward.

    So it is where the model stays in memory and the activations of a batch fit beside it, with all sums.
    """
    shape = shape_of(plan.checkpoint)
    if not score.backward or shape.whole or not model_stays(shape, device):
        return False
    if home_of_states(shape, scratch_bytes(shape, score), device) is None:  # on disk a killed run would go on
        return False
    return _in_one_go(plan, shape, score, device) <= budgets.memory(device)


def _in_one_go(plan: Plan, shape: Shape, score: SampledScore, device: str) -> int:
    """The model, its sums and the scores of the language before; a batch's activations in all layers; its logits."""
    tokens = score.batch_size * score.sequence_length
    widened = _resident(shape, device) or 0
    scored = 4 * sum(info.numel for info in plan.scored_tensors(score))
    logits = 4 * min(tokens, budgets.chunk_tokens(shape.vocabulary, device)) * shape.vocabulary * 4
    held = widened + (1 + _sums(plan, score)) * scored
    return held + _activations(replace(shape, whole=True), tokens, True) + logits


def _verifying(shape: Shape, spec: VerifySpec, languages: int, models: int, resident: int | None, device: str) -> int:
    """A layer, and the next one, which is read ahead; or the head with a chunk of its logits."""
    tokens = spec.batch_size * min(spec.window, spec.tokens)
    widened = resident if resident is not None else 8 * shape.layer
    hidden = 4 * models * languages * spec.tokens * shape.hidden
    states = hidden if home_of_states(shape, hidden, device) == device and not shape.whole else 0
    return max(widened + _activations(shape, tokens, False), _head(shape, tokens, 3, resident, device)) + states


def _head(shape: Shape, tokens: int, copies: int, resident: int | None, device: str) -> int:
    chunk = tokens if shape.whole else min(tokens, budgets.chunk_tokens(shape.vocabulary, device))
    widened = resident if resident is not None else 4 * shape.outer
    return widened + 4 * chunk * shape.vocabulary * copies


def activations(shape: Shape, tokens: int, backward: bool) -> int:
    """Return the bytes of a batch's activations, in float32: of one layer, or of all that wait for the way back.

    Some twelve are as wide as the residual stream (normed, queries, keys, values, mixed, sums, and their gradients),
    five as the feed-forward between its matrices.
    """
    layers = shape.layers if shape.whole and backward else 1
    return 4 * tokens * layers * (12 * shape.hidden + 5 * shape.wide)


def _activations(shape: Shape, tokens: int, backward: bool) -> int:
    alive = activations(shape, tokens, backward)
    return alive + min(alive // 2, _BETWEEN_BYTES)


def _hidden(shape: Shape, score: SampledScore, device: str) -> int:
    """Hidden states in the device's memory: none if they go elsewhere, beside those of one batch."""
    needed = scratch_bytes(shape, score)
    return needed if home_of_states(shape, needed, device) == device else 0


def scratch_bytes(shape: Shape, score: SampledScore) -> int:
    """Return at most how many bytes the hidden states between layers take, and their gradients."""
    if shape.whole:
        return 0
    tokens = len(dict.fromkeys(score.languages)) * score.samples * score.sequence_length
    # States before every layer, and a few of gradients; without a way back those before and after one layer.
    rows = shape.layers + 5 if score.backward else 2
    return 4 * rows * tokens * shape.hidden


def verified_bytes(plan: Plan, shape: Shape) -> int:
    """Return the bytes of the hidden states of all models that are verified, and of the unedited one."""
    verify = plan.recipe.verify
    if verify is None or shape.whole:
        return 0
    return 4 * (2 + len(plan.variants) + len(plan.parts())) * len(plan.verify_languages) * verify.tokens * shape.hidden


def score_bytes(tensors: Iterable[TensorInfo], score: SampledScore) -> int:
    """Return the bytes of the scores of all languages."""
    return 4 * len(dict.fromkeys(score.languages)) * sum(info.numel for info in tensors)


def keeps_scores(plan: Plan, score: SampledScore) -> bool:
    """True if a score is kept in files: if it is small beside what is free where the cache lies.

    So is one, whatever its size, that a region needs again after the pass in which it is computed.
    """
    drawn = (region for region in plan.regions.values() if region.score == score)
    return any(drawn_apart(plan.regions, region) for region in drawn) or _fits(
        score_bytes(plan.scored_tensors(score), score)
    )


def _fits(size: int) -> bool:
    folder = cache_folder()
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return size <= SHARE_OF_DISK * shutil.disk_usage(existing).free


@dataclass(frozen=True)
class Stores:
    """What scoring puts on the disk: scores that are kept, those that would be and are not, and hidden states."""

    kept: int
    not_kept: int
    scratch: int


def stores(plan: Plan) -> Stores:
    """Say what scoring puts on the disk, in bytes; hidden states that fit into memory are not counted."""
    sampled = plan.sampled_scores()
    sizes = {keeps_scores(plan, score): 0 for score in sampled}
    for score in sampled:
        sizes[keeps_scores(plan, score)] += score_bytes(plan.scored_tensors(score), score)
    shape = shape_of(plan.checkpoint)
    scratch = max((scratch_bytes(shape, score) for score in sampled), default=0)
    return Stores(sizes.get(True, 0), sizes.get(False, 0), scratch if scratch > budgets.hidden_bytes() else 0)


def disk_needed(plan: Plan) -> int:
    """Return at most how many bytes of disk the run takes: variants, scores, scratch, regions twice, downloads."""
    variants = sum(variant.bytes_to_write for variant in plan.variants.values())
    regions = sum(_mask_bytes(region) for region in plan.regions.values())
    scored = stores(plan)
    return variants + scored.kept + scored.scratch + 2 * regions + plan.bytes_to_download
