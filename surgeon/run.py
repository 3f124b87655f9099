"""One run of a plan: its steps, in the order in which `apply` takes them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import content_hash
from surgeon.checkpoint.hashing import file_hash
from surgeon.errors import RegionError
from surgeon.model.precision import Precision, resolve_precision
from surgeon.model.results import Verification
from surgeon.model.tokenizer import load_tokenizer
from surgeon.operations.edits import EditCount, count_edits
from surgeon.plan.pinning import pinned, pinned_operations
from surgeon.plan.plan import Plan
from surgeon.plan.supply import check_supply, needs_text
from surgeon.progress import Progress
from surgeon.recipe.schema import Recipe, VerifySpec
from surgeon.region.region import Region
from surgeon.report.card import model_card, write_card
from surgeon.report.data import (
    ModelReport,
    RegionReport,
    Report,
    ScoreReport,
    VariantReport,
    generation,
    region_report,
)
from surgeon.report.intervals import LEVEL, RESAMPLES, SEED
from surgeon.report.manifest import environment
from surgeon.report.measured import check_expectations, perplexities, summarize, sweep_report
from surgeon.scores.build import build_regions
from surgeon.scores.scoring import ScoreSet, Scoring, run_scores
from surgeon.text.windows import bos_token
from surgeon.write.execute import Staged, Written, files_below, publish, stage_variant, write_freeze
from surgeon.write.patches import donor_hash, write_as_patch

if TYPE_CHECKING:
    from surgeon.model.model import LoadedModel
    from surgeon.model.stack import Stack


class Run:
    """One run of a plan: the model is built when first needed, once per precision; `keep` insists on whole scores."""

    def __init__(
        self, plan: Plan, device: str, jobs: int | None, progress: Progress | None, *, keep: bool = False
    ) -> None:
        self.plan, self.device, self.keep = plan, device, keep
        self.jobs, self.progress = jobs or os.cpu_count() or 1, progress or Progress()
        self.timings: dict[str, float] = {}
        self._stacks: dict[str, Stack] = {}

    def check_texts(self) -> None:
        """Read every text before anything is scored or written, and say where there is too little of it."""
        if needs_text(self.plan):
            for note in check_supply(self.plan, load_tokenizer(self.plan.checkpoint)):
                self.progress.note(note)

    def stack(self, precision: str) -> Stack:
        """The model, layer by layer, in `float32` or `native` arithmetic."""
        from surgeon.model.model import load_model
        from surgeon.model.stack import make_stack

        if precision not in self._stacks:
            with self.timed("load"):
                chosen: Precision = "float32" if precision == "float32" else "native"
                self._stacks[precision] = make_stack(load_model(self.plan.checkpoint, chosen, self.device))
        return self._stacks[precision]

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that passes inside to that of a step."""
        started = time.perf_counter()
        yield
        self.timings[what] = round(self.timings.get(what, 0.0) + time.perf_counter() - started, 3)

    @cached_property
    def scores(self) -> list[ScoreSet]:
        """The importance scores, computed or out of the cache."""
        with self.timed("score"):
            return run_scores(Scoring(self.plan, self.stack, self.device, self.jobs, self.progress, self.keep))

    @cached_property
    def regions(self) -> dict[str, Region]:
        """The regions that the recipe names."""
        scores = self.scores
        with self.timed("select"):
            return build_regions(self.plan, scores, self.jobs, self.plan.file.as_written.regions, {})

    def regions_of(self, variant: str) -> dict[str, Region]:
        """The regions that a variant uses. Those of a sweep's point are made anew, so that points need no memory."""
        spec = self.plan.recipe.variants[variant]
        used = dict.fromkeys(operation.region for operation in spec.operations)
        if spec.held is not None:
            used[spec.held] = None
        scores, known = self.scores, self.regions
        with self.timed("select"):
            return build_regions(self.plan, scores, self.jobs, used, known)

    @cached_property
    def edits(self) -> dict[str, EditCount]:
        """What each variant changes, written or not.

        Raises:
            RegionError: a region that a variant uses turned out to be empty; all such at once.
        """
        counts, problems = {}, []
        for name, variant in self.plan.recipe.variants.items():
            regions = self.regions_of(name)
            empty = [label for label, region in regions.items() if not region.entries]
            problems += [
                f"region '{label}' turned out to be empty, so that '{name}' would do nothing" for label in empty
            ]
            with self.timed("count"):
                counts[name] = count_edits(self.plan.checkpoint, variant.operations, regions)
        if problems:
            raise RegionError("\n".join(problems))
        return counts


def save_regions(run: Run) -> dict[str, Path]:
    """Write the regions that the recipe names, and those that written variants need."""
    wanted = dict(run.regions)
    for name, variant in run.plan.variants.items():
        if variant.write:
            wanted |= run.regions_of(name)
    files = {}
    for name, region in wanted.items():
        path = run.plan.output / "regions" / f"{name}.region.safetensors"
        region.save(path)
        files[name] = path
    return files


def stage_variants(run: Run, region_files: Mapping[str, Path]) -> dict[str, Staged | Written]:
    """Write the variants, but not yet under their names; those that are there already are taken as they are."""
    staged: dict[str, Staged | Written] = {}
    for name, variant in run.plan.variants.items():
        if not variant.write:
            continue
        spec = run.plan.recipe.variants[name]
        used = run.regions_of(name)
        if spec.write == "patch":
            with run.timed("write"):
                staged[name] = write_as_patch(run.plan, name, used, run.progress)
            continue
        operations = pinned_operations(spec.operations)
        marker: dict[str, Any] = {
            "variant": name,
            "operations": [operation.model_dump(by_alias=True, exclude_none=True) for operation in operations],
            "donors": {
                operation.donor: donor_hash(operation.donor, run.jobs)
                for operation in operations
                if operation.donor is not None
            },
            "freeze": spec.freeze,
            **({} if spec.train_only is None else {"train_only": spec.train_only}),
            "regions": {label: file_hash(region_files[label]) for label in used},
            "model": {
                "source": run.plan.checkpoint.source.name,
                "revision": run.plan.checkpoint.source.revision,
                "content_sha256": content_hash(run.plan.checkpoint, run.jobs),
            },
            "recipe": _recipe_data(pinned(run.plan), {"push"}),  # where it goes makes it no other variant
        }
        held = None if spec.held is None else (used[spec.held], spec.train_only is not None)
        with run.timed("write"), run.progress.task(f"write {name}", run.plan.checkpoint.data_bytes) as advance:
            staged[name] = stage_variant(
                run.plan.checkpoint,
                spec.operations,
                used,
                run.plan.output / "variants" / name,
                marker=marker,
                card=model_card(run.plan, name, used),
                complete=partial(_write_freeze, run.plan.checkpoint, held, marker["model"]),
                jobs=run.jobs,
                advance=advance,
            )
    return staged


def _recipe_data(recipe: Recipe, without: set[str]) -> dict[str, Any]:
    return dict(json.loads(recipe.model_dump_json(by_alias=True, exclude_none=True, exclude=without)))


def publish_variants(staged: Mapping[str, Staged | Written]) -> dict[str, Written]:
    """Flush what was staged and give it its name."""
    return {name: item if isinstance(item, Written) else publish(item) for name, item in staged.items()}


def write_cards(run: Run, written: Mapping[str, Written], report: Report) -> dict[str, Written]:
    """Put what was measured into the model cards of the written variants."""
    result = dict(written)
    for name, item in written.items():
        if name in report.perplexity and item.path.is_dir():  # a patch is a file
            write_card(item.path, model_card(run.plan, name, run.regions_of(name), report), report)
            result[name] = replace(item, files=files_below(item.path))
    return result


def _write_freeze(
    checkpoint: Checkpoint, held: tuple[Region, bool] | None, model: Mapping[str, Any], stage: Path
) -> None:
    if held is not None:
        write_freeze(checkpoint, held[0], model, stage, train_only=held[1])


def verify_variants(run: Run) -> tuple[Verification, dict[str, Any]]:
    """Measure the base and the variants, all in one sweep through the layers; also says how it was measured."""
    spec = run.plan.recipe.verify
    if spec is None:
        return Verification(), {}
    from surgeon.model.editing import Variant
    from surgeon.model.verification import verify

    stack = run.stack(resolve_precision("auto", run.device))
    variants = [Variant("base")]
    for name, variant in run.plan.recipe.variants.items():
        variants.append(Variant(name, variant.operations, run.regions_of(name)))
    with run.timed("verify"):
        found = verify(stack, variants, run.plan.corpus, run.plan.verify_languages, spec, run.progress)
    return found, _method(stack.loaded, spec)


def _method(loaded: LoadedModel, spec: VerifySpec) -> dict[str, Any]:
    return {
        "tokens": spec.tokens,
        "window": spec.window,
        "stride": spec.stride or spec.window,
        "bos": "before every window" if bos_token(loaded.tokenizer) is not None else "never (the tokenizer adds none)",
        "precision": loaded.precision,
        "device": loaded.device,
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
    }


def make_report(run: Run, written: Mapping[str, Written], found: Verification, method: dict[str, Any]) -> Report:
    """Put together all that a run did and found."""
    the_plan, measures = run.plan, found.measures
    recipe, checkpoint = the_plan.recipe, the_plan.checkpoint
    summary = summarize(measures) if measures else {}
    return Report(
        name=recipe.name,
        recipe=_recipe_data(the_plan.file.as_written, set()),
        model=ModelReport(
            name=checkpoint.source.name,
            revision=checkpoint.source.revision,
            model_type=checkpoint.config.get("model_type"),
            parameters=sum(info.numel for info in checkpoint.tensors.values()),
            tensors=len(checkpoint.tensors),
            shards=len(checkpoint.headers),
            bytes=checkpoint.data_bytes,
            content_sha256=None if checkpoint.is_remote else content_hash(checkpoint, run.jobs),
        ),
        scores=[
            ScoreReport(kind=item.spec.kind, language=language, sequences=size.sequences, tokens=size.tokens)
            for item in run.scores
            for language, size in item.samples.items()
        ],
        regions={name: _region_report(the_plan, name, region) for name, region in run.regions.items()},
        variants={name: _variant_report(run, name, written.get(name)) for name in the_plan.variants},
        sweeps={name: sweep_report(sweep, summary) for name, sweep in the_plan.file.sweeps.items()},
        method=method,
        perplexity=perplexities(measures) if measures else {},
        summary=summary,
        generations={name: [generation(item) for item in items] for name, items in found.continuations.items()},
        expectations=check_expectations(recipe.verify.expect, measures) if recipe.verify else [],
        timings=run.timings,
        environment=environment(run.device),
    )


def _region_report(the_plan: Plan, name: str, region: Region) -> RegionReport:
    return region_report(region, the_plan.checkpoint.config, the_plan.regions[name].origin)


def _variant_report(run: Run, name: str, done: Written | None) -> VariantReport:
    edits = run.edits[name]
    return VariantReport(
        operations=list(run.plan.variants[name].operations),
        entries=edits.entries,
        changed=edits.changed,
        norm_removed=edits.norm,
        written=done is not None,
        path=str(done.path) if done else None,
        bytes=sum(path.stat().st_size for path in done.files) if done else None,
        reused=done.reused if done else False,
    )
