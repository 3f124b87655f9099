"""All that a plan says before anything is done, as data: `--json` prints it, and the terminal shows it in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgeon.anatomy.scope import left_out, senses, unknown_kinds
from surgeon.checkpoint.coded import Coded
from surgeon.checkpoint.quantized import quantization
from surgeon.plan.duration import parts_in_models
from surgeon.plan.elsewhere import DeviceNeeds, RankNeeds, device_needs, rank_needs
from surgeon.plan.needs import Running, peak_memory, shape_of, stores
from surgeon.plan.plan import Plan, VariantPlan
from surgeon.progress import Step
from surgeon.regions.base import RegionPlan
from surgeon.regions.outlines import excludes_nothing


@dataclass(frozen=True)
class RegionSummary:
    """A region: at most so many `entries`, or just so many if `exact`, of `numel` in some `tensors`.

    `in_recipe` is False for a region that a sweep makes. `leaves_out` says what of its scope it cannot take;
    `excludes_nothing` are roles that it excludes and that the model does not have.
    """

    selects: str
    tensors: int
    entries: int
    exact: bool
    numel: int
    in_recipe: bool
    leaves_out: Sequence[str]
    excludes_nothing: Sequence[str]


@dataclass(frozen=True)
class PartsSummary:
    """How many parts of cuts are measured by themselves, and how many whole models would cost as much."""

    count: int
    in_models: float


@dataclass(frozen=True)
class PlanSummary:
    """What `apply` would do, and what that takes: bytes, and `seconds` on this machine, all estimates or bounds.

    `quantized` tensors are stored in the format `quantization`. `scores` says in words what is scored, `idle` names
    variants of which nothing would come. `held_whole` and `in_one_go` say how the model is run: layer by layer where
    neither is true. `peak_memory` is the host's, `on_device` what is taken where the model runs on another device,
    `per_rank` what each of several processes takes. `longest_step` takes more than half of the time.
    """

    model: str
    revision: str | None
    tensors: int
    files: int
    bytes: int
    remote: bool
    bytes_to_download: int
    remarks: Sequence[str]
    quantization: str | None
    quantized: int
    unknown_kinds: Sequence[str]
    left_out: Sequence[str]
    senses: Sequence[str]
    corpus: str
    languages: int
    text_notes: Sequence[str]
    output: str
    scores: Sequence[str]
    regions: Mapping[str, RegionSummary]
    variants: Mapping[str, VariantPlan]
    idle: Sequence[str]
    verify_languages: Sequence[str]
    parts: PartsSummary
    prompts: int
    push: Mapping[str, Mapping[str, str | None]]
    runs_model: bool
    held_whole: bool
    in_one_go: bool
    score_bytes: Mapping[str, int]
    scratch_bytes: int
    peak_memory: int
    disk_needed: int
    on_device: DeviceNeeds | None
    per_rank: RankNeeds | None
    seconds: float | None
    longest_step: str | None


def summarize(
    plan: Plan,
    expected: Sequence[Step] = (),
    ranks: int | None = None,
    notes: Sequence[str] = (),
    device: str = "cpu",
) -> PlanSummary:
    """Say what a plan does and takes; `expected` are its steps with the time they may take, `notes` are on the texts.

    With `ranks` also what each of so many processes takes. `device` is where the model runs.
    """
    checkpoint, recipe, stored = plan.checkpoint, plan.recipe, stores(plan)
    seconds = sum(step.seconds for step in expected)
    targets = {name: recipe.push.place(name) for name in recipe.pushed_variants() if recipe.push is not None}
    return PlanSummary(
        model=checkpoint.source.name, revision=checkpoint.source.revision, tensors=len(checkpoint.tensors),
        files=len(checkpoint.headers), bytes=checkpoint.data_bytes, remote=checkpoint.is_remote,
        bytes_to_download=plan.bytes_to_download, remarks=plan.remarks, quantization=quantization(checkpoint),
        quantized=sum(isinstance(info, Coded) for info in checkpoint.tensors.values()),
        unknown_kinds=unknown_kinds(checkpoint), left_out=left_out(checkpoint, plan.edited()),
        senses=senses(checkpoint), corpus=plan.corpus.name, languages=len(plan.corpus.languages), text_notes=notes,
        output=str(plan.output), scores=[score.described() for score in plan.scores()],
        regions={name: _region(plan, name, region) for name, region in plan.regions.items()},
        variants=plan.variants,
        idle=plan.idle, verify_languages=plan.verify_languages,
        parts=PartsSummary(len(plan.parts()), round(parts_in_models(plan), 2)),
        prompts=len(recipe.verify.prompts) if recipe.verify is not None else 0,
        push={name: {"repo": repo, "revision": revision} for name, (repo, revision) in targets.items()},
        runs_model=plan.runs_model, held_whole=plan.runs_model and shape_of(checkpoint).whole,
        in_one_go=any(map(Running(plan, device).scores_in_one_go, plan.sampled_scores())),
        score_bytes={"kept": stored.kept, "not_kept": stored.not_kept}, scratch_bytes=stored.scratch,
        peak_memory=peak_memory(plan, device), disk_needed=plan.disk_needed,
        on_device=device_needs(plan, device) if device != "cpu" and plan.runs_model else None,
        per_rank=None if ranks is None else rank_needs(plan, ranks, expected),
        seconds=round(seconds, 1) if expected else None,
        longest_step=next((step.label for step in expected if step.seconds > seconds / 2), None),
    )  # fmt: skip


def _region(plan: Plan, name: str, region: RegionPlan) -> RegionSummary:
    return RegionSummary(
        region.kind.selects(), len(region.tensors), region.entries, region.exact, region.numel,
        name in plan.file.as_written.regions, region.leaves_out, excludes_nothing(plan.checkpoint, region.spec),
    )  # fmt: skip
