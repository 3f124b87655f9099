"""A plan, as it is shown on the terminal before anything is done."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from surgeon.plan.needs import SHARE_OF_DISK
from surgeon.plan.summary import PlanSummary
from surgeon.progress import duration, extent
from surgeon.report.words import count, percent, size, text_alone
from surgeon.views.terminal import Rows, table, told

_STEPS = {
    "score ": "scoring",
    "perplexity": "measuring perplexity",
    "page": "drawing the report",
    "copies": "copying to and from the device",
}


def plan_view(plan: PlanSummary) -> Group:
    """Show a plan: model and texts, regions, variants, and what they need."""
    parts: list[RenderableType] = [told(*_head(plan), *_notes(plan), *_outcome(plan)), Text("")]
    parts += [_regions_table(plan)] if plan.regions else []
    parts += [_variants_table(plan)] if plan.variants else []
    return Group(*parts, told(*_needs(plan), f"output  {plan.output}"))


def _regions_table(plan: PlanSummary) -> Rows:
    rows = table("Regions", "region", "selects", "tensors", "entries", "of", words=["selects"])
    for name, region in plan.regions.items():
        if region.in_recipe:
            entries = f"{'' if region.exact else '<= '}{region.entries:,}"
            rows.add_row(name, region.selects, str(region.tensors), entries, f"{region.numel:,}")
    return rows


def _variants_table(plan: PlanSummary) -> Rows:
    heads = ("variant", "operations", "tensors", "entries", "shards", "writes")
    rows = table("Variants", *heads, words=["operations"])
    for name, variant in plan.variants.items():
        written = size(variant.bytes_to_write)
        written = f"<= {written} patch" if variant.write == "patch" else written if variant.write else "in memory"
        rows.add_row(
            name, ", ".join(variant.operations), str(variant.tensors), f"<= {variant.entries_at_most:,}",
            f"{variant.shards}/{plan.files}", written,
        )  # fmt: skip
    return rows


def _head(plan: PlanSummary) -> Iterator[str]:
    """Say what the model and its files are, what is scored, and how the model is run."""
    fetched = ", on the Hub; only the tensors that change are fetched" if plan.remote else ""
    if plan.bytes_to_download:
        fetched = f", of which {size(plan.bytes_to_download)} to download"
    yield f"model   {plan.model}: {plan.tensors} tensors in {plan.files} file(s), {size(plan.bytes)}{fetched}"
    yield f"corpus  {plan.corpus}: {plan.languages} languages"
    yield from (f"files   {line}" for line in plan.remarks)
    if plan.quantization is not None:
        yield f"format  {plan.quantization}; {plan.quantized} of {plan.tensors} tensors"
        yield from _encoding(plan)
    yield from (f"text    {note}" for note in plan.text_notes)
    yield from (f"score   {line}" for line in plan.scores)
    if plan.runs_model:
        yield from _running(plan)


def _encoding(plan: PlanSummary) -> Iterator[str]:
    """Say what it takes to encode new values in the format of quantized weights."""
    for name, variant in plan.variants.items():
        if variant.blocks_at_most == 0:
            yield f"encode  {name}: exact, every new value is a code"
        elif variant.blocks_at_most is not None:
            yield (
                f"encode  {name}: new values are rounded once to codes of at most {variant.blocks_at_most:,} blocks; a "
                "block whose scale is too small for one gets another; the report says the error"
            )


def _running(plan: PlanSummary) -> Iterator[str]:
    """Say how the model is run, and what scoring leaves on the disk."""
    if plan.held_whole:
        yield "runs    kept in memory as a whole, which grows with the model: its layers are no plain stack"
    elif plan.in_one_go:
        yield "runs    all layers at once, batch by batch: the model and a batch's activations fit into memory"
    else:
        yield "runs    layer by layer; each layer's weights are read once per pass"
    kept, not_kept = plan.score_bytes["kept"], plan.score_bytes["not_kept"]
    if kept:
        yield f"scores  kept, {size(kept)}: another recipe on the same scores runs no model"
    if not_kept:
        yield (
            f"scores  not kept: {size(not_kept)} are more than {percent(SHARE_OF_DISK)} of the free disk; "
            "a layer's regions are selected when its scores are complete"
        )
    if plan.scratch_bytes:
        yield f"scratch {size(plan.scratch_bytes)} at most, of hidden states between layers"


def _notes(plan: PlanSummary) -> Iterator[str]:
    """Say what of the model no region reaches, and what regions do not reach of what they name."""
    if plan.unknown_kinds:
        names = ", ".join(plan.unknown_kinds)
        yield f"unknown {names}: unknown role; name them in include or exclude by patterns like these"
    yield from (f"left    {line}" for line in plan.left_out)
    if plan.runs_model and plan.senses:
        yield f"note    {text_alone(plan.senses)}"
    for name, region in plan.regions.items():
        if region.in_recipe:
            for role in region.excludes_nothing:
                yield f"note    region '{name}' excludes {role}, which the model does not have"
            yield from (f"note    region '{name}' leaves out {what}" for what in region.leaves_out)


def _outcome(plan: PlanSummary) -> Iterator[str]:
    """Say what is measured, and what is pushed where."""
    if plan.verify_languages:
        prompts = f", {count(plan.prompts, 'prompt')}" if plan.prompts else ""
        yield f"verify  {len(plan.verify_languages)} languages, {1 + len(plan.variants)} models{prompts}"
    if plan.parts.count:
        yield (
            f"parts   {plan.parts.count} parts of cuts, one at a time: as much work as {plan.parts.in_models:.1f} more "
            "models"
        )
    if plan.idle:
        yield f"note    neither written nor measured, so without effect: {', '.join(plan.idle)}"
    for name, target in plan.push.items():
        yield f"push    {name} to hf://{target['repo']}{'@' + target['revision'] if target['revision'] else ''}"


def _needs(plan: PlanSummary) -> Iterator[str]:
    """Say what time, memory, disk and processes the run takes."""
    if plan.seconds is not None:
        step = plan.longest_step
        mostly = "" if step is None else f", mostly {_STEPS.get(step, step)}"
        yield f"time    {extent(plan.seconds)} on this machine (estimate){mostly}"
    yield f"needs   about {size(plan.peak_memory)} of memory (estimate), at most {size(plan.disk_needed)} of disk"
    device, rank = plan.on_device, plan.per_rank
    if device is not None:
        yield (
            f"device  about {size(device.memory)} of memory on {device.device} (estimate); copied: about "
            f"{size(device.up)} to it, {size(device.down)} from it"
        )
    if rank is not None:
        yield (
            f"ranks   {rank.ranks}; each about {size(rank.memory)} of memory, {size(rank.scratch)} of scratch at most"
        )
        yield (
            f"        reads {size(rank.read)} of weights, sends {size(rank.sent)} at most; about "
            f"{duration(rank.seconds)} on {rank.ranks} such processors, without waiting for the network"
        )
