"""What a plan takes: memory at its peak, and disk.

Told from headers, so both are estimates or upper bounds. The model goes through layer by layer, so that memory is a
few of its largest layers in float32, one batch's activations in one layer, and what `model/budgets.py` allows; only a
model that is no plain stack is held whole. What is told of memory is no less than what a run takes, and in the runs
that tests/plan/test_needs.py measures at most a third more.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
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
from surgeon.regions.base import RegionPlan
from surgeon.regions.outlines import drawn_apart
from surgeon.scores.base import SampledScore, Score

# Measured: the interpreter with numpy; torch, transformers and a tokenizer loaded; the figures of the page.
_BASELINE_BYTES, _TORCH_BYTES, _DRAWING_BYTES = 60_000_000, 350_000_000, 160_000_000
# Beside what is in use the C library has blocks ready for the next batch, and blocks are not cut to measure.
_SPARE, _MOST_SPARE = 0.5, 200_000_000
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

    def activations(self, tokens: int, layers: int = 1) -> int:
        """Return the bytes of a batch's activations, in float32: of one layer, or of all that wait for the way back.

        Some twelve are as wide as the residual stream (normed, queries, keys, values, mixed, sums, and their
        gradients), five as the feed-forward between its matrices.
        """
        return 4 * tokens * layers * (12 * self.hidden + 5 * self.wide)


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


@dataclass(frozen=True)
class Running:
    """What it takes to run a plan's model on a device, in bytes."""

    plan: Plan
    device: str = "cpu"

    @cached_property
    def shape(self) -> Shape:
        """What memory depends on in the model."""
        return shape_of(self.plan.checkpoint)

    @cached_property
    def stays(self) -> bool:
        """True if the weights stay in the device's memory once they are there."""
        return 4 * self.shape.total <= budgets.resident_bytes(self.device)

    @property
    def memory(self) -> int:
        """Memory of the device at its peak: weights, sums, activations, logits, and hidden states that stay there."""
        return _with_spare(max([*map(self._scoring, self.plan.sampled_scores()), self._verifying()]))

    @cached_property
    def held(self) -> int | None:
        """What weights take that stay, none of it if their files are mapped; None if they come and go by layers."""
        if self.shape.mapped and self.device == "cpu":
            return 0
        return 4 * self.shape.total if self.shape.whole or self.stays else None

    def scores_in_one_go(self, score: SampledScore) -> bool:
        """True if a score goes forward and back through all layers at once, batch by batch, without a second forward.

        So it is where the model stays in memory and the activations of a batch fit beside it, with all sums.
        """
        if not score.backward or self.shape.whole or not self.stays:
            return False
        if self.home_of(scratch_bytes(self.shape, score)) is None:  # on disk a killed run would go on
            return False
        return _with_spare(self._in_one_go(score)) <= budgets.memory(self.device)

    def home_of(self, states: int) -> str | None:
        """Return where so many bytes of hidden states stay, see `budgets.home_of_hidden`."""
        shape = self.shape
        largest = max(shape.layer, shape.total - shape.layers * shape.layer)
        size = budgets.ModelSize(budgets.memory(self.device), shape.total, largest, self.stays)
        return budgets.home_of_hidden(states, self.device, size)

    def _scoring(self, score: SampledScore) -> int:
        """A layer's gradients, its sums, and the scores of one tensor, made of its weights and its sum in float32."""
        if self.scores_in_one_go(score):
            return self._in_one_go(score)
        shape = self.shape
        largest = max((info.numel for info in self.plan.scored_tensors(score)), default=0) if score.backward else 0
        sums = 4 * (1 + self._sums(score)) * (shape.total if shape.whole else shape.layer) + 8 * largest
        layers = shape.layers if shape.whole and score.backward else 1
        peak = self._peak(sums, score.batch_size * score.sequence_length, layers)
        return peak + self._kept(scratch_bytes(shape, score))

    def _in_one_go(self, score: SampledScore) -> int:
        """The model, the gradients and sums of all that is scored, and a batch's activations in all layers."""
        scored = sum(info.numel for info in self.plan.scored_tensors(score))
        tokens = score.batch_size * score.sequence_length
        return self._peak(4 * (1 + self._sums(score)) * scored, tokens, self.shape.layers)

    def _sums(self, score: SampledScore) -> int:
        """Return how many sums there are of what is scored at a time: of a piece, of those before it, of languages."""
        several = len(dict.fromkeys(score.languages)) > 1
        of_pieces = 1 + (score.samples > score.batch_size) if score.backward else 0
        return of_pieces + (several and not keeps_scores(self.plan, score))

    def _verifying(self) -> int:
        """The models' hidden states, and the edits of variants that are kept from token to token."""
        verify = self.plan.recipe.verify
        if verify is None:
            return 0
        edits, ahead = 0, 4 * self.shape.layer if self.held is None else 0
        if verify.prompts and self.held is None:
            edits = min(budgets.EDIT_BYTES_PER_ENTRY * edited_entries(self.plan), budgets.EDITS_BYTES)
        # A model that was scored in its own dtype still lies on the device, beside the one in float32.
        native = self.device != "cpu" and any(score.dtype == "native" for score in self.plan.sampled_scores())
        before = self.plan.checkpoint.data_bytes if native and self.held is not None else 0
        peak = self._peak(ahead, verify.batch_size * min(verify.window, verify.tokens))
        return before + peak + self._kept(verified_bytes(self.plan, self.shape)) + edits

    def _kept(self, states: int) -> int:
        """Return what hidden states take of the device's memory: none if they go elsewhere."""
        return states if self.home_of(states) == self.device else 0

    def _peak(self, beside: int, tokens: int, layers: int = 1) -> int:
        """A layer, what is `beside` it, and a batch's activations; or the head, with copies of a chunk's logits.

        Where several layers are run at once, both.
        """
        shape = self.shape
        chunk = tokens if shape.whole else min(tokens, budgets.chunk_tokens(shape.vocabulary, self.device))
        logits, activations = 16 * chunk * shape.vocabulary, shape.activations(tokens, layers)
        if layers > 1 and self.held is not None:
            return self.held + beside + activations + logits
        layer, head = (4 * shape.layer, 4 * shape.outer) if self.held is None else (self.held, self.held)
        return max(layer + beside + activations, head + logits)


def _with_spare(size: int) -> int:
    return size + min(int(_SPARE * size), _MOST_SPARE)


def peak_memory(plan: Plan, device: str = "cpu") -> int:
    """Estimate the peak of the host's anonymous memory in bytes; mapped files are not counted, they page out.

    What running the model takes is the host's where the `device` is the CPU; else the host holds hidden states that
    the device has no room for, and two layers' weights on their way.
    """
    selecting = max((_selecting(plan, score) for score in plan.scores()), default=0)
    beside = max(_editing(plan), selecting, _DRAWING_BYTES)
    if not plan.runs_model:
        return _BASELINE_BYTES + beside
    running = Running(plan, device)
    shape = running.shape
    if device == "cpu":
        return _TORCH_BYTES + max(running.memory, _with_spare(beside + (running.held or 0)))
    states = [*(scratch_bytes(shape, score) for score in plan.sampled_scores()), verified_bytes(plan, shape)]
    on_host = [size for size in states if running.home_of(size) == "cpu"]
    return _TORCH_BYTES + _with_spare(beside + max(on_host, default=0) + 8 * shape.layer)


def _editing(plan: Plan) -> int:
    """Return what an edit of one tensor takes."""
    tensors = [info for region in plan.regions.values() for info in region.tensors]
    largest = max((info.numel for info in tensors), default=0)
    densest = max((region.entries / max(region.numel, 1) for region in plan.regions.values()), default=0.0)
    fetched = 0
    if plan.checkpoint.is_remote and not plan.needs_all_weights:  # a tensor on the Hub is fetched into memory
        fetched = max((info.nbytes for info in tensors), default=0)
    per_entry = [
        operation.bytes_per_entry for variant in plan.recipe.variants.values() for operation in variant.operations
    ]
    edit = int(largest * densest) * max(per_entry, default=Operation.bytes_per_entry)
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


def edited_entries(plan: Plan) -> int:
    """Return at most how many entries all variants together edit."""
    labels = [label for spec in plan.recipe.variants.values() for done in spec.operations for label in done.regions]
    return sum(plan.regions[label].entries for label in labels)


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
    if any(drawn_apart(plan.regions, region) for region in plan.regions.values() if region.score == score):
        return True
    folder = cache_folder().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return score_bytes(plan.scored_tensors(score), score) <= SHARE_OF_DISK * free


@dataclass(frozen=True)
class Stores:
    """What scoring puts on the disk: scores that are kept, those that would be and are not, and hidden states."""

    kept: int
    not_kept: int
    scratch: int


def stores(plan: Plan) -> Stores:
    """Say what scoring puts on the disk, in bytes; hidden states that fit into memory are not counted."""
    sampled, shape = plan.sampled_scores(), shape_of(plan.checkpoint)
    sizes = {True: 0, False: 0}
    for score in sampled:
        sizes[keeps_scores(plan, score)] += score_bytes(plan.scored_tensors(score), score)
    scratch = max((scratch_bytes(shape, score) for score in sampled), default=0)
    return Stores(sizes[True], sizes[False], scratch if scratch > budgets.hidden_bytes() else 0)


def disk_needed(plan: Plan) -> int:
    """Return at most how many bytes of disk the run takes: variants, scores, scratch, regions twice, downloads."""
    variants = sum(variant.bytes_to_write for variant in plan.variants.values())
    regions = sum(_mask_bytes(region) for region in plan.regions.values())
    scored = stores(plan)
    return variants + scored.kept + scored.scratch + 2 * regions + plan.bytes_to_download


def bytes_to_write(write: bool | Literal["patch"], checkpoint: Checkpoint, regions: Iterable[RegionPlan]) -> int:
    """Return the bytes of the whole checkpoint, or at most those of a patch; 0 if nothing is written."""
    if write != "patch":
        return written_bytes(checkpoint) if write else 0
    widths = ((region, max((DTYPE_BITS[info.dtype] // 8 for info in region.tensors), default=0)) for region in regions)
    return sum(region.entries * width + _mask_bytes(region) for region, width in widths)


def _mask_bytes(region: RegionPlan) -> int:
    """Return at most the bytes of a region's file: a bit an entry, or a byte an entry selected and some of 255."""
    return min(math.ceil(region.entries * 1.3), region.numel // 8)
