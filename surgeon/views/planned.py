"""A plan, as it is shown before anything is done: on the terminal and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.text import Text

from surgeon.anatomy.scope import left_out, senses, unknown_kinds
from surgeon.checkpoint.coded import Coded
from surgeon.checkpoint.quantized import quantization
from surgeon.plan.device import device_needs
from surgeon.plan.duration import parts_in_models
from surgeon.plan.estimates import SHARE_OF_DISK, peak_memory, scores_in_one_go, shape_of, stores
from surgeon.plan.plan import Plan
from surgeon.plan.ranks import rank_needs
from surgeon.progress import Step, duration, extent
from surgeon.regions.narrowing import excludes_nothing
from surgeon.report.words import percent, size, text_alone
from surgeon.views.terminal import table, told


def plan_view(
    plan: Plan,
    expected: Sequence[Step] = (),
    ranks: int | None = None,
    notes: Sequence[str] = (),
    device: str = "cpu",
) -> Group:
    """Show a plan: regions, variants, and what they need; `expected` are the steps with the time they may take.

    `notes` are on the texts. With `ranks` also what each of so many processes takes. `device` is where the model runs.
    """
    regions = table("Regions", "region", "selects", "tensors", "entries", "of", words=["selects"])
    for name in plan.file.as_written.regions:
        region = plan.regions[name]
        most = "" if region.exact else "<= "
        regions.add_row(
            name, region.kind.selects(), str(len(region.tensors)), f"{most}{region.entries:,}", f"{region.numel:,}"
        )
    heads = ("variant", "operations", "tensors", "entries", "shards", "writes")
    variants = table("Variants", *heads, words=["operations"])
    for variant in plan.variants.values():
        writes = size(variant.bytes_to_write) if variant.write else "in memory"
        writes = f"<= {writes} patch" if variant.write == "patch" else writes
        variants.add_row(
            variant.name, ", ".join(variant.operations), str(variant.tensors), f"<= {variant.entries:,}",
            f"{variant.shards}/{len(plan.checkpoint.headers)}", writes,
        )  # fmt: skip
    lines = [
        f"model   {plan.checkpoint.source.name}: {len(plan.checkpoint.tensors)} tensors in "
        f"{len(plan.checkpoint.headers)} file(s), {size(plan.checkpoint.data_bytes)}{_fetched(plan)}",
        f"corpus  {plan.corpus.name}: {len(plan.corpus.languages)} languages",
    ]
    lines += [f"files   {line}" for line in plan.remarks]
    lines += _format_words(plan)
    lines += [f"text    {note}" for note in notes]
    lines += [f"score   {score.described()}" for score in plan.scores()]
    lines += _run_words(plan, device)
    unknown = unknown_kinds(plan.checkpoint)
    if unknown:
        lines.append(
            f"unknown {', '.join(unknown)}: unknown role; name them in include or exclude by patterns like these"
        )
    lines += [f"left    {line}" for line in left_out(plan.checkpoint, plan.edited())]
    if plan.runs_model and senses(plan.checkpoint):
        lines.append(f"note    {text_alone(senses(plan.checkpoint))}")
    for name in plan.file.as_written.regions:
        for role in excludes_nothing(plan.checkpoint, plan.regions[name].spec):
            lines.append(f"note    region '{name}' excludes {role}, of which the model has none")
        lines += [f"note    region '{name}' leaves out {what}" for what in plan.regions[name].leaves_out]
    if plan.verify_languages:
        lines.append(f"verify  {len(plan.verify_languages)} languages, {1 + len(plan.variants)} models")
        prompts = plan.recipe.verify.prompts if plan.recipe.verify else []
        lines[-1] += f", {len(prompts)} prompt{'' if len(prompts) == 1 else 's'}" if prompts else ""
    if count := len(plan.parts()):
        lines.append(
            f"parts   {count} parts of cuts, one at a time: as much work as {parts_in_models(plan):.1f} more models"
        )
    if plan.idle:
        lines.append(f"note    neither written nor measured, so without effect: {', '.join(plan.idle)}")
    push = plan.recipe.push
    for name in plan.recipe.pushed_variants() if push is not None else ():
        repo, revision = push.place(name) if push is not None else ("", None)
        lines.append(f"push    {name} to hf://{repo}{'@' + revision if revision else ''}")
    needs = f"needs   about {size(peak_memory(plan, device))} of memory (estimate), "
    needs += f"at most {size(plan.disk_needed)} of disk"
    if device != "cpu" and plan.runs_model:
        found = device_needs(plan, device)
        needs += (
            f"\ndevice  about {size(found.memory)} of memory on {device} (estimate); copied: about {size(found.up)} "
        )
        needs += f"to it, {size(found.down)} from it"
    if ranks is not None:
        needs += f"\n{_rank_words(plan, ranks, expected)}"
    parts: list[Any] = [told(*lines), Text("")]
    if plan.regions:
        parts.append(regions)
    if plan.variants:
        parts.append(variants)
    if expected:
        parts.append(told(_time_words(expected)))
    return Group(*parts, told(*needs.split("\n"), f"output  {plan.output}"))


def _format_words(plan: Plan) -> list[str]:
    """Say how quantized weights are stored, and what encoding new values takes."""
    method = quantization(plan.checkpoint)
    if method is None:
        return []
    coded = sum(isinstance(info, Coded) for info in plan.checkpoint.tensors.values())
    lines = [f"format  {method}; {coded} of {len(plan.checkpoint.tensors)} tensors"]
    for variant in plan.variants.values():
        if variant.blocks == 0:
            lines.append(f"encode  {variant.name}: exact, every new value is a code")
        elif variant.blocks is not None:
            lines.append(
                f"encode  {variant.name}: new values are rounded once to codes of at most {variant.blocks:,} blocks; a "
                "block whose scale is too small for one gets another; the report says the error"
            )
    return lines


def _time_words(expected: Sequence[Step]) -> str:
    """Say how long a run may take, and what of it takes longest."""
    whole = sum(step.seconds for step in expected)
    longest = max(expected, key=lambda step: step.seconds)
    mostly = f", mostly {_STEPS.get(longest.label, longest.label)}" if longest.seconds > whole / 2 else ""
    return f"time    {extent(whole)} on this machine (estimate){mostly}"


_STEPS = {"score ": "scoring", "perplexity": "measuring perplexity", "page": "drawing the report"}


def _run_words(plan: Plan, device: str) -> list[str]:
    """Say how the model is run, and what scoring leaves on the disk."""
    if not plan.runs_model:
        return []
    lines = ["runs    layer by layer; each layer's weights are read once per pass"]
    if shape_of(plan.checkpoint).whole:
        lines = ["runs    kept in memory as a whole, which grows with the model: its layers are no plain stack"]
    elif any(scores_in_one_go(plan, score, device) for score in plan.sampled_scores()):
        lines = ["runs    all layers at once, batch by batch: the model and a batch's activations fit into memory"]
    found = stores(plan)
    if found.kept:
        lines.append(f"scores  kept, {size(found.kept)}: another recipe on the same scores runs no model")
    if found.not_kept:
        lines.append(
            f"scores  not kept: {size(found.not_kept)} are more than {percent(SHARE_OF_DISK)} of the free disk; "
            "a layer's regions are selected when its scores are complete"
        )
    if found.scratch:
        lines.append(f"scratch {size(found.scratch)} at most, of hidden states between layers")
    return lines


def _rank_words(plan: Plan, ranks: int, expected: Sequence[Step]) -> str:
    """Say what each rank takes."""
    found = rank_needs(plan, ranks, expected)
    return (
        f"ranks   {ranks}; each about {size(found.memory)} of memory, {size(found.scratch)} of scratch at most\n"
        f"        reads {size(found.read)} of weights, sends {size(found.sent)} at most; about "
        f"{duration(found.seconds)} on {ranks} such processors, without waiting for the network"
    )


def _fetched(plan: Plan) -> str:
    if not plan.checkpoint.is_remote:
        return ""
    if plan.needs_all_weights:
        return f", of which {size(plan.bytes_to_download)} are to be downloaded"
    return ", on the Hub; only the tensors that change are fetched"


def plan_data(
    plan: Plan,
    expected: Sequence[Step] = (),
    ranks: int | None = None,
    notes: Sequence[str] = (),
    device: str = "cpu",
) -> dict[str, Any]:
    """Return a plan as plain data, for `--json`; `seconds` is what the `expected` steps may take.

    With `ranks` also what each of so many processes takes; where the model runs on another `device` than the CPU, also
    what is taken there.
    """
    data = _plan_data(plan, expected) | {"text_notes": list(notes)}
    if ranks is not None:
        data["per_rank"] = asdict(rank_needs(plan, ranks, expected))
    if device != "cpu" and plan.runs_model:
        data |= {"peak_memory": peak_memory(plan, device), "on_device": asdict(device_needs(plan, device))}
    return data


def _plan_data(plan: Plan, expected: Sequence[Step]) -> dict[str, Any]:
    return {
        "model": plan.checkpoint.source.name,
        "revision": plan.checkpoint.source.revision,
        "bytes_to_download": plan.bytes_to_download,
        "output": str(plan.output),
        "remarks": plan.remarks,
        "quantization": quantization(plan.checkpoint),
        "regions": {
            name: {
                "tensors": len(r.tensors), "numel": r.numel, "entries": r.entries, "exact": r.exact,
                "leaves_out": list(r.leaves_out),
            }
            for name, r in plan.regions.items()
        },
        "variants": {
            v.name: {
                "operations": list(v.operations), "write": v.write, "tensors": v.tensors, "entries_at_most": v.entries,
                "shards": v.shards, "bytes_to_write": v.bytes_to_write, "blocks_at_most": v.blocks,
            }
            for v in plan.variants.values()
        },
        "unknown_kinds": unknown_kinds(plan.checkpoint),
        "left_out": left_out(plan.checkpoint, plan.edited()),
        "verify_languages": list(plan.verify_languages),
        "parts": {"count": len(plan.parts()), "in_models": round(parts_in_models(plan), 2)},
        "push": {
            name: dict(zip(("repo", "revision"), plan.recipe.push.place(name), strict=True))
            for name in plan.recipe.pushed_variants() if plan.recipe.push is not None
        },
        "held_whole": plan.runs_model and shape_of(plan.checkpoint).whole,
        "score_bytes": {"kept": stores(plan).kept, "not_kept": stores(plan).not_kept},
        "scratch_bytes": stores(plan).scratch,
        "peak_memory": plan.peak_memory,
        "disk_needed": plan.disk_needed,
        "seconds": round(sum(step.seconds for step in expected), 1) if expected else None,
    }  # fmt: skip
