"""One run of a plan: its steps, in the order in which `apply` takes them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon import inside
from surgeon.anatomy.anatomy import anatomy_of
from surgeon.anatomy.scope import left_out, senses
from surgeon.checkpoint.companions import companions
from surgeon.checkpoint.fingerprint import content_hash, refuse_changed
from surgeon.checkpoint.hashing import CHANGED, file_hash
from surgeon.checkpoint.quantized import codecs_of
from surgeon.checkpoint.remarks import notes_on
from surgeon.checkpoint.remembered import read_hash, stored_hash
from surgeon.checkpoint.storage import replacing
from surgeon.errors import CheckpointError, RegionError, SurgeonError
from surgeon.json_text import to_json
from surgeon.measure.intervals import LEVEL, RESAMPLES, SEED
from surgeon.measure.verification_cache import keep, kept_path, load_kept
from surgeon.memory import give_memory_back
from surgeon.model.precision import Precision, resolve_precision
from surgeon.model.results import CONTINUATIONS, Verification
from surgeon.model.token_counts import TokenCounts
from surgeon.model.tokenizer import load_tokenizer
from surgeon.model.workplace import Workplace
from surgeon.operations import Operation
from surgeon.operations.edits import EditCount, count_edits
from surgeon.plan.estimates import shape_of
from surgeon.plan.pinning import pinned, pinned_operations
from surgeon.plan.plan import Plan
from surgeon.plan.text_supply import check_supply, needs_text
from surgeon.progress import Progress
from surgeon.recipe.schema import Dequantized, Recipe, VariantSpec, VerifySpec
from surgeon.recipe.written import resolved_yaml
from surgeon.region.region import Region
from surgeon.regions.make import make_regions
from surgeon.report.card import model_card, write_card, write_results
from surgeon.report.data import Report
from surgeon.report.expected import check_expectations
from surgeon.report.html import write_page
from surgeon.report.manifest import environment, manifest
from surgeon.report.measured import (
    first_finding,
    measurement_reports,
    perplexities,
    summarize,
    sweep_report,
)
from surgeon.report.parts import EncodingReport, ModelReport, RegionReport, ScoreReport, StepReport, VariantReport
from surgeon.report.passages import passages
from surgeon.report.regions import overlap_reports, region_report
from surgeon.scoring.scoring import ScoreSet, Scoring, run_scores
from surgeon.team import ALONE, Team
from surgeon.text.windows import new_tokens
from surgeon.write.integrity import MANIFEST, RECIPE, VARIANTS, outputs_of
from surgeon.write.marker import MARKER, MarkedModel, Marker
from surgeon.write.output import clear_staging, remove_old
from surgeon.write.patches import donor_hash, write_as_patch
from surgeon.write.staging import Staged, Written, publish, stage_variant, write_freeze

if TYPE_CHECKING:
    from surgeon.model.layer_stack import Stack


class Run:
    """One run of a plan: the model is built when first needed, once per precision; `keep` insists on whole scores.

    The processes of a `team` all have a part in what runs the model, and in writing.
    """

    def __init__(
        self,
        plan: Plan,
        device: str,
        jobs: int | None,
        progress: Progress | None,
        *,
        keep: bool = False,
        team: Team = ALONE,
    ) -> None:
        self.plan, self.device, self.keep, self.team = plan, device, keep, team
        self.jobs, self.progress = jobs or os.cpu_count() or 1, progress or Progress()
        self.timings: dict[str, float] = {}
        self._place = Workplace(device, self.jobs, team)
        self.edits: dict[str, EditCount] = {}

    def check_texts(self) -> list[str]:
        """Read every text before anything is scored or written; returns notes on where there is too little of it."""
        return check_supply(self.plan, self.token_counts) if needs_text(self.plan) else []

    @cached_property
    def token_counts(self) -> TokenCounts:
        """How many tokens texts have, by the tokenizer beside the model's weights."""
        return TokenCounts(self.plan.checkpoint, partial(load_tokenizer, self.plan.checkpoint))

    def stack(self, precision: str) -> Stack:
        """The model, layer by layer, in `float32` or `native` arithmetic."""
        chosen: Precision = "float32" if precision == "float32" else "native"
        with self.timed("load"):
            return self._place.load(self.plan.checkpoint, chosen)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that passes inside to that of a step; what it is done with goes back to the system."""
        started = time.perf_counter()
        yield
        give_memory_back()
        self.timings[what] = round(self.timings.get(what, 0.0) + time.perf_counter() - started, 3)

    @cached_property
    def scores(self) -> list[ScoreSet]:
        """The importance scores, computed or out of the cache."""
        with self.timed("score"):
            return run_scores(
                Scoring(
                    self.plan,
                    self.stack,
                    self.token_counts,
                    self.device,
                    self.jobs,
                    self.progress,
                    self.keep,
                    self.team,
                )
            )

    @cached_property
    def regions(self) -> dict[str, Region]:
        """The regions that the recipe names."""
        scores = self.scores
        with self.timed("select"), self.progress.task("select regions", 1, least=30):
            return make_regions(
                self.plan.provenance(self.jobs), scores, self.jobs, self.plan.file.as_written.regions, {}
            )

    def regions_of(self, variant: str) -> dict[str, Region]:
        """The regions that a variant uses. Those of a sweep's point are made anew, so that points need no memory."""
        spec = self.plan.recipe.variants[variant]
        used = dict.fromkeys(label for operation in spec.operations for label in operation.regions)
        if spec.held is not None:
            used[spec.held] = None
        scores, known = self.scores, self.regions
        with self.timed("select"):
            return make_regions(self.plan.provenance(self.jobs), scores, self.jobs, used, known)

    @cached_property
    def donors(self) -> dict[str, str]:
        """What tells each donor from all others, as it is when this is first asked for."""
        operations = [item for variant in self.plan.recipe.variants.values() for item in variant.operations]
        names = dict.fromkeys(donor for operation in operations for donor in operation.donors)
        return {name: donor_hash(name, self.jobs) for name in names}

    def refuse_changed(self) -> None:
        """Refuse a source, or donors, that are no longer what they were when they were opened, or first came here.

        Raises:
            CheckpointError: one was written to, replaced or removed meanwhile.
        """
        refuse_changed(self.plan.checkpoint)
        for name, before in self.donors.items():
            if donor_hash(name, self.jobs) != before:
                raise CheckpointError(f"{name}: {CHANGED}")

    def count_unwritten(self) -> None:
        """Fill `edits`: what each variant changes that is not written as a checkpoint; writing one counts that itself.

        Raises:
            RegionError: a region that any variant uses, written or not, turned out to be empty; all such at once.
            InputError: see `make_edit`.
        """
        problems = []
        for name, variant in self.plan.recipe.variants.items():
            empty = [label for label, region in self.regions_of(name).items() if not region.entries]
            problems += [
                f"region '{label}' turned out to be empty, so that '{name}' would do nothing" for label in empty
            ]
            if not variant.whole and not problems:
                self.edits[name] = self.count(name)
        if problems:
            raise RegionError(*problems)

    def count(self, variant: str) -> EditCount:
        """Count what a variant changes, in a pass over what it touches."""
        regions = self.regions_of(variant)
        with self.timed("count"):
            return count_edits(self.plan.source_of(variant), self.plan.recipe.variants[variant].operations, regions)


def save_regions(run: Run) -> dict[str, Path]:
    """Write the regions that the recipe names, and those that written variants need."""
    wanted = dict(run.regions)
    for name, variant in run.plan.variants.items():
        if variant.write:
            wanted |= run.regions_of(name)
    refuse_changed(run.plan.checkpoint)
    files = {}
    for name, region in wanted.items():
        path = run.plan.output / "regions" / f"{name}.region.safetensors"
        region.save(path)
        files[name] = path
    return files


def stage_variants(run: Run, region_files: Mapping[str, Path]) -> dict[str, Staged | Written]:
    """Make the variants, but not yet under their names; what an earlier run finished is taken as it is."""
    staged: dict[str, Staged | Written] = {}
    wanted = [name for name, variant in run.plan.variants.items() if variant.write]
    clear_staging(run.plan.output, wanted)
    for name in wanted:
        spec, used = run.plan.recipe.variants[name], run.regions_of(name)
        if spec.write == "patch":
            with run.timed("write"):
                staged[name] = write_as_patch(run.plan, name, used, run.progress)
            continue
        held = used[spec.held] if spec.held is not None else None
        with run.timed("write"), run.progress.task(f"write {name}", run.plan.checkpoint.data_bytes) as advance:
            staged[name] = stage_variant(
                run.plan.source_of(name),
                spec.operations,
                used,
                run.plan.output / VARIANTS / name,
                marker=_marker(run, name, {label: region_files[label] for label in used}),
                complete=partial(write_freeze, run.plan.checkpoint, held),
                jobs=run.jobs,
                advance=advance,
                team=run.team,
            )
    return staged


def _marker(run: Run, name: str, region_files: Mapping[str, Path]) -> Marker:
    """Return what the marker of a variant will say, but for the hash of the source, which writing it makes."""
    spec, source = run.plan.recipe.variants[name], run.plan.checkpoint.source
    operations = pinned_operations(spec.operations)
    donors = [donor for operation in operations for donor in operation.donors]
    return Marker(
        variant=name,
        operations=[operation.model_dump(by_alias=True, exclude_none=True) for operation in operations],
        donors={donor: donor_hash(donor, run.jobs) for donor in donors},
        freeze=spec.freeze,
        train_only=spec.train_only,
        dtype=spec.write.dtype if isinstance(spec.write, Dequantized) else None,
        regions={label: stored_hash(path) for label, path in region_files.items()},
        model=MarkedModel(source=source.name, revision=source.revision, content_sha256=""),
        recipe=_recipe_data(pinned(run.plan), {"push"}),  # where it goes makes it no other variant
    )


def _recipe_data(recipe: Recipe, without: set[str]) -> dict[str, Any]:
    return dict(json.loads(recipe.model_dump_json(by_alias=True, exclude_none=True, exclude=without)))


def publish_variants(run: Run, staged: Mapping[str, Staged | Written], report: Report | None) -> dict[str, Written]:
    """Put the card beside each variant, with what was measured, and give it its name; without a report, no card."""
    written = {}
    run.refuse_changed()
    for name, item in staged.items():
        if isinstance(item, Written):  # a patch is a file
            written[name] = item
            continue
        if report is not None:
            with replacing(item.folder / MARKER) as part:  # of one that is reused, the recipe may be another
                part.write_text(item.marker.text(), encoding="utf-8")
            write_card(item.folder, model_card(run.plan, name, run.regions_of(name), report), report, name)
            write_results(run.plan, name, report, item.folder)
        written[name] = publish(item)
    return written


def verify_variants(run: Run) -> tuple[Verification, dict[str, Any]]:
    """Measure the base and the variants, all in one pass through the layers; also says how it was measured.

    What an earlier run measured of the very same models, texts and settings is taken from there.
    """
    spec = run.plan.recipe.verify
    if spec is None:
        return Verification(), {}
    precision = resolve_precision("auto")
    operations = {"base": [], **{name: item.operations for name, item in run.plan.recipe.variants.items()}}
    found, missing = Verification(), {}
    paths = {name: _kept_paths(run, name, done, spec, precision) for name, done in operations.items()}
    for name, by_kind in paths.items():
        there = {kind: load_kept(path, name, kind) for kind, path in by_kind.items()}
        for one in there.values():
            found = found.joined(one) if one is not None else found
        if lacking := [kind for kind, one in there.items() if one is None]:
            missing[name] = lacking
    if missing:
        from surgeon.measure.verification import verify
        from surgeon.model.editing import Variant

        compares = {item.kind for item in spec.measurements if item.compares}
        names = list(missing)
        if "base" not in missing and any(compares.intersection(kinds) for kinds in missing.values()):
            names = ["base", *names]  # its outputs are needed once more
        stack = run.stack(precision)
        regions = {name: run.regions_of(name) if name != "base" else {} for name in names}
        plain = {name: item.dequantized for name, item in run.plan.recipe.variants.items()}
        variants = [Variant(name, operations[name], regions[name], plain=plain.get(name, False)) for name in names]
        known, languages = found, run.plan.verify_languages

        def tell(new: Verification) -> None:
            run.progress.found(first_finding(known.joined(new).ordered(operations).measures))

        with run.timed("verify"):
            new = verify(stack, variants, run.plan.corpus, languages, spec, run.progress, missing, tell, run.team)
        for name, lacking in missing.items():
            for kind in lacking:
                keep(paths[name][kind], name, new, kind)
        found = found.joined(new)
    return found.ordered(operations), _method(run, precision, spec)


def _kept_paths(
    run: Run, name: str, operations: Sequence[Operation], spec: VerifySpec, precision: Precision
) -> dict[str, Path | None]:
    """Return where the figures of a model are kept, by kind: those that are told of it, and its continuations."""
    donors = {donor: run.donors[donor] for item in operations for donor in item.donors}
    texts = {language: run.plan.corpus.text(language).evaluate_hash for language in run.plan.verify_languages}
    regions = run.regions_of(name) if name != "base" else {}
    kinds = [item.kind for item in spec.measurements if name != "base" or not item.compares]
    kinds += [CONTINUATIONS] if spec.prompts and name in run.plan.talkers else []
    of_model = partial(
        kept_path,
        run.plan.source_of(name),
        list(operations),
        regions,
        donors,
        texts,
        spec,
        precision,
        run.device,
        run.jobs,
    )
    return {kind: of_model(kind) for kind in kinds}


def _method(run: Run, precision: Precision, spec: VerifySpec) -> dict[str, Any]:
    begun = run.token_counts.begun()
    return {
        "tokens": spec.tokens,
        "window": spec.window,
        "stride": new_tokens(begun, spec.window, spec.stride or spec.window),
        "bos": f"{begun} before every window" if begun else "none, since the tokenizer adds none",
        "precision": precision,
        "device": run.device,
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
    }


def make_report(
    run: Run, staged: Mapping[str, Staged | Written], found: Verification, method: dict[str, Any]
) -> Report:
    """Put together all that a run did and found."""
    the_plan, measures = run.plan, found.measures
    recipe, checkpoint = the_plan.recipe, the_plan.checkpoint
    summary = summarize(measures) if measures else {}
    measurements = measurement_reports(found, recipe.verify.measurements) if recipe.verify else {}
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
            vocabulary=shape_of(checkpoint).vocabulary or None,
            left_out=left_out(checkpoint, the_plan.edited()),
            senses=senses(checkpoint),
            files_left_out=dict(companions(checkpoint).left_out),
            notes=notes_on(checkpoint),
        ),
        scores=[
            ScoreReport(kind=item.score.kind, language=language, sequences=size.sequences, tokens=size.tokens)
            for item in run.scores
            for language, size in item.samples.items()
        ],
        regions={name: _region_report(the_plan, name, region) for name, region in run.regions.items()},
        overlaps=overlap_reports(run.regions),
        variants={name: _variant_report(run, name, staged.get(name)) for name in the_plan.variants},
        sweeps={name: sweep_report(sweep, summary) for name, sweep in the_plan.file.sweeps.items()},
        method=method,
        perplexity=perplexities(measures) if measures else {},
        summary=summary,
        measurements=measurements,
        passages=passages(found),
        generations={name: list(items) for name, items in found.continuations.items()},
        expectations=check_expectations(recipe.verify.expect, measures, measurements) if recipe.verify else [],
        timings=run.timings,
        environment=environment(run.device),
    )


def _region_report(the_plan: Plan, name: str, region: Region) -> RegionReport:
    places = {tensor: place for tensor, place in anatomy_of(the_plan.checkpoint).places.items() if tensor in region}
    return region_report(region, the_plan.checkpoint.config, the_plan.regions[name].origin, places)


def _variant_report(run: Run, name: str, done: Staged | Written | None) -> VariantReport:
    counted = done.marker.edits if isinstance(done, Staged) else run.edits[name]
    edits = counted if counted is not None else run.count(name)
    return VariantReport(
        operations=list(run.plan.variants[name].operations),
        steps=_steps(run.plan.recipe.variants[name]),
        entries=edits.entries,
        changed=edits.changed,
        norm_removed=edits.norm,
        encoding=_encoding(run, edits),
        written=done is not None,
        path=str(done.path) if done else None,
        bytes=done.size if done else None,
        reused=done.reused if done else False,
    )


def _encoding(run: Run, edits: EditCount) -> EncodingReport | None:
    if not codecs_of(run.plan.checkpoint):
        return None
    found = edits.rounding
    return EncodingReport(
        blocks=found.blocks, rescaled=found.rescaled, rounded=found.rounded, largest=found.largest, norm=found.norm
    )


def _steps(variant: VariantSpec) -> list[StepReport]:
    """Return what is done to a variant, and what trainers are told of it, as data."""
    steps = []
    for item in variant.operations:
        settings = item.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={item.kind})
        steps += [StepReport(kind=item.kind, region=name, settings=settings) for name in dict.fromkeys(item.regions)]
    held = [("freeze", variant.freeze), ("train_only", variant.train_only)]
    return [*steps, *(StepReport(kind=kind, region=region) for kind, region in held if region is not None)]


def unchanged_report(out: Path, report: Report, manifest: Mapping[str, Any]) -> Report | None:
    """Return the report of the run before, if it found the same and all that it wrote is there as it was written."""
    try:
        earlier = Report.load(out / "report.json")
    except (OSError, ValueError, SurgeonError):
        return None
    if _timeless(earlier) != _timeless(report) or any(
        not item.reused for item in report.variants.values() if item.written
    ):
        return None
    named = {**manifest.get("outputs", {}), **manifest.get("report", {})}
    # The files of variants were read when these were taken up, a moment ago.
    hashed = {name: stored_hash if name.startswith(f"{VARIANTS}/") else read_hash for name in named}
    intact = all(
        inside.is_plain_file(out, name) and hashed[name](out / name) == digest for name, digest in named.items()
    )
    return earlier if named and intact else None


def _timeless(report: Report) -> dict[str, Any]:
    """Return what a report says that does not depend on when it was made, or on what was there before."""
    data = json.loads(report.model_dump_json(exclude={"timings", "pushed"}))
    for variant in data["variants"].values():
        del variant["reused"]
    return dict(data)


def seal(run: Run, report: Report, outputs: Mapping[Path, str], before: Mapping[str, Any]) -> dict[str, Any]:
    """Write recipe, report and page, remove what only the run before made, and write the manifest that names them all.

    `outputs` are regions and variants with their SHA-256, `before` the manifest of the run before. Returns the new one.
    """
    out = run.plan.output
    run.refuse_changed()  # also where nothing was written of it: what was measured is published
    with replacing(out / RECIPE) as part:
        part.write_text(resolved_yaml(pinned(run.plan)), encoding="utf-8")
    with replacing(out / "report.json") as part:
        report.save(part)
    pages = write_page(report, out)
    named = {**outputs, out / RECIPE: file_hash(out / RECIPE)}
    made = manifest(run.plan, named, [out / "report.json", *pages], run.device, run.jobs)
    variants = [name for name, variant in run.plan.variants.items() if variant.write is True]
    replaced = before.get("name") not in (None, made["name"])
    for path in remove_old(out, outputs_of(before), outputs_of(made), variants, replaced):
        run.progress.note(f"{out / path}: of an earlier run, and not named by this recipe; left as it is")
    with replacing(out / MANIFEST) as part:
        part.write_text(to_json(made) + "\n", encoding="utf-8")
    return made
