"""One run of a plan: its steps, in the order in which `apply` takes them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.fingerprint import refuse_changed, stored_hash
from surgeon.checkpoint.hashing import CHANGED, file_hash
from surgeon.errors import CheckpointError, RegionError
from surgeon.inside import replacing
from surgeon.json_text import to_json
from surgeon.measure.parts import Part, parts_of
from surgeon.memory import give_memory_back
from surgeon.model.arithmetic import Precision
from surgeon.model.tokenizer import TokenCounts, load_tokenizer
from surgeon.model.workplace import Workplace
from surgeon.operations.edits import EditCount, Surgery
from surgeon.plan.plan import Plan, pinned, pinned_operations
from surgeon.plan.texts import check_supply
from surgeon.progress import Progress
from surgeon.recipe.schema import as_data, resolved_yaml
from surgeon.region.region import Region
from surgeon.regions.make import Scored, make_regions
from surgeon.report.card import model_card, write_card, write_results
from surgeon.report.data import Report
from surgeon.report.html import write_page
from surgeon.report.manifest import manifest
from surgeon.scoring import Scoring, run_scores
from surgeon.write.marker import MANIFEST, MARKER, RECIPE, VARIANTS, MarkedModel, Marker, outputs_of
from surgeon.write.output import clear_staging, remove_old
from surgeon.write.patches import donor_hash, write_as_patch
from surgeon.write.staging import Staged, Written, publish, stage_variant

if TYPE_CHECKING:
    from surgeon.model.layer_stack import Stack


class Run:
    """One run of a plan: the model is built when first needed, once per precision; `keep` insists on whole scores.

    `began` is when planning did, by `time.perf_counter`.
    The processes of a `team` all have a part in what runs the model, and in writing.
    """

    def __init__(self, plan: Plan, place: Workplace, progress: Progress, began: float, *, keep: bool = False) -> None:
        self.plan, self.place, self.progress, self.began, self.keep = plan, place, progress, began, keep
        self.timings: dict[str, float] = {}
        self.edits: dict[str, EditCount] = {}

    def check_texts(self) -> list[str]:
        """Read every text before anything is scored or written; returns notes on where there is too little of it."""
        return check_supply(self.plan, self.token_counts) if self.plan.runs_model else []

    @cached_property
    def token_counts(self) -> TokenCounts:
        """How many tokens texts have, by the tokenizer beside the model's weights."""
        return TokenCounts(self.plan.checkpoint, partial(load_tokenizer, self.plan.checkpoint))

    def stack(self, precision: Precision) -> Stack:
        """The model, layer by layer, in `float32` or `native` arithmetic."""
        with self.timed("load"):
            return self.place.load(self.plan.checkpoint, precision)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that passes inside to that of a step; what it is done with goes back to the system."""
        started = time.perf_counter()
        yield
        give_memory_back()
        self.timings[what] = round(self.timings.get(what, 0.0) + time.perf_counter() - started, 3)

    @cached_property
    def scores(self) -> list[Scored]:
        """The importance scores, computed or out of the cache."""
        with self.timed("score"):
            return run_scores(Scoring(self.plan, self.stack, self.token_counts, self.place, self.progress, self.keep))

    @cached_property
    def regions(self) -> dict[str, Region]:
        """The regions that the recipe names."""
        scores = self.scores
        with self.timed("select"), self.progress.task("select regions", 1, least=30):
            return self._made(scores, self.plan.file.as_written.regions, {})

    def regions_of(self, model: str) -> dict[str, Region]:
        """The regions of a variant, or of the base. Those of a sweep's point are made anew: points need no memory."""
        spec, scores, known = self.plan.recipe.variants.get(model), self.scores, self.regions
        with self.timed("select"):
            return self._made(scores, spec.regions if spec is not None else (), known)

    def _made(self, scores: Sequence[Scored], names: Iterable[str], known: Mapping[str, Region]) -> dict[str, Region]:
        return make_regions(self.plan.provenance(self.place.jobs), scores, names, known)

    @cached_property
    def parts(self) -> list[Part]:
        """The parts of cuts that are measured by themselves."""
        verify, source = self.plan.recipe.verify, self.plan.checkpoint
        places, by = anatomy_of(source).places, verify.by if verify is not None else []
        return [
            part for name in self.plan.dissected for part in parts_of(name, self._cut_of(name), by, places, source.ties)
        ]

    def _cut_of(self, variant: str) -> dict[str, Region]:
        """Return the regions of a variant's operations, and not the one that a bundle speaks of."""
        regions = self.regions_of(variant)
        return {label: regions[label] for done in self.plan.operations_of(variant) for label in done.regions}

    @cached_property
    def donors(self) -> dict[str, str]:
        """What tells each donor from all others, as it is when this is first asked for."""
        operations = [item for variant in self.plan.recipe.variants.values() for item in variant.operations]
        names = dict.fromkeys(donor for operation in operations for donor in operation.donors)
        return {name: donor_hash(name, self.place.jobs) for name in names}

    def refuse_changed(self) -> None:
        """Refuse a source, or donors, that are no longer what they were when they were opened, or first came here.

        Raises:
            CheckpointError: one was written to, replaced or removed meanwhile.
        """
        refuse_changed(self.plan.checkpoint)
        for name, before in self.donors.items():
            if donor_hash(name, self.place.jobs) != before:
                raise CheckpointError(f"{name}: {CHANGED}")

    def count_unwritten(self) -> None:
        """Fill `edits`: what each variant changes that is not written as a checkpoint; writing one counts that itself.

        Raises:
            RegionError: a region that any variant uses, written or not, turned out to be empty; all such at once.
            InputError: see `Surgery.edit`.
        """
        problems = []
        for name, variant in self.plan.recipe.variants.items():
            problems += [
                f"region '{label}' is empty, so '{name}' would do nothing"
                for label, region in self.regions_of(name).items()
                if not region.entries
            ]
            if not variant.whole and not problems:
                self.edits[name] = self.count(name)
        if problems:
            raise RegionError(*problems)

    def count(self, variant: str) -> EditCount:
        """Count what a variant changes, in a pass over what it touches."""
        regions = self.regions_of(variant)
        with self.timed("count"):
            return Surgery(self.plan.source_of(variant), self.plan.operations_of(variant), regions).count()


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
                Surgery(run.plan.source_of(name), spec.operations, used),
                run.plan.output / VARIANTS / name,
                run.place,
                marker=_marker(run, name, {label: region_files[label] for label in used}),
                held=held,
                advance=advance,
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
        donors={donor: donor_hash(donor, run.place.jobs) for donor in donors},
        freeze=spec.freeze,
        train_only=spec.train_only,
        dtype=spec.plain_dtype,
        regions={label: stored_hash(path) for label, path in region_files.items()},
        model=MarkedModel(source=source.name, revision=source.revision, content_sha256=""),
        recipe=as_data(pinned(run.plan), {"push"}),  # where it goes makes it no other variant
    )


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
    sealed = manifest(run.plan, named, [out / "report.json", *pages], run.place.device, run.place.jobs)
    variants = [name for name, variant in run.plan.variants.items() if variant.write is True]
    replaced = before.get("name") not in (None, sealed["name"])
    for path in remove_old(out, outputs_of(before), outputs_of(sealed), variants, replaced):
        run.progress.note(f"{out / path}: from an earlier run, and not in this recipe; it stays")
    with replacing(out / MANIFEST) as part:
        part.write_text(to_json(sealed) + "\n", encoding="utf-8")
    return sealed
