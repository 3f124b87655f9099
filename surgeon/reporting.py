"""What a run did and found, put together as its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon import inside
from surgeon.anatomy.anatomy import anatomy_of
from surgeon.anatomy.scope import left_out, senses
from surgeon.checkpoint.companions import companions
from surgeon.checkpoint.fingerprint import content_hash, read_hash, stored_hash
from surgeon.checkpoint.quantized import codecs_of, notes_on
from surgeon.errors import SurgeonError
from surgeon.model.results import Verification
from surgeon.operations.edits import EditCount
from surgeon.plan.needs import shape_of
from surgeon.plan.plan import Plan
from surgeon.recipe.schema import VariantSpec, as_data
from surgeon.region.region import Region
from surgeon.report.data import Report
from surgeon.report.entries import EncodingReport, ModelReport, ScoreReport, StepReport, VariantReport
from surgeon.report.expected import check_expectations
from surgeon.report.manifest import environment
from surgeon.report.measured import measurement_reports, passages, perplexities, summarize, sweep_report
from surgeon.report.parts import part_reports
from surgeon.report.regions import RegionReport, overlap_reports, region_report
from surgeon.run import Run
from surgeon.write.marker import VARIANTS
from surgeon.write.staging import Staged, Written


def make_report(
    run: Run, staged: Mapping[str, Staged | Written], figures: Verification, method: dict[str, Any]
) -> Report:
    """Put together all that a run did and found."""
    plan, parts = run.plan, part_reports(run.parts, figures.measures, run.plan.checkpoint.ties)
    figures = figures.ordered(["base", *plan.recipe.variants])
    measures = figures.measures
    recipe, checkpoint = plan.recipe, plan.checkpoint
    perplexity, summary = (perplexities(measures), summarize(measures)) if measures else ({}, {})
    measurements = measurement_reports(figures, recipe.verify.measurements) if recipe.verify else {}
    return Report(
        name=recipe.name,
        recipe=as_data(plan.file.as_written),
        model=ModelReport(
            name=checkpoint.source.name,
            revision=checkpoint.source.revision,
            model_type=checkpoint.config.get("model_type"),
            parameters=sum(info.numel for info in checkpoint.tensors.values()),
            tensors=len(checkpoint.tensors),
            shards=len(checkpoint.headers),
            bytes=checkpoint.data_bytes,
            content_sha256=None if checkpoint.is_remote else content_hash(checkpoint, run.place.jobs),
            vocabulary=shape_of(checkpoint).vocabulary or None,
            left_out=left_out(checkpoint, plan.edited()),
            senses=senses(checkpoint),
            files_left_out=dict(companions(checkpoint).left_out),
            notes=notes_on(checkpoint),
        ),
        scores=[
            ScoreReport(kind=item.score.kind, language=language, sequences=size.sequences, tokens=size.tokens)
            for item in run.scores
            for language, size in item.samples.items()
        ],
        regions={name: _region_report(plan, name, region) for name, region in run.regions.items()},
        overlaps=overlap_reports(run.regions),
        variants={name: _variant_report(run, name, staged.get(name)) for name in plan.variants},
        sweeps={name: sweep_report(sweep, summary) for name, sweep in plan.file.sweeps.items()},
        method=method,
        perplexity=perplexity,
        summary=summary,
        measurements=measurements,
        parts=parts,
        passages=passages(figures),
        generations={name: list(items) for name, items in figures.continuations.items()},
        expectations=check_expectations(recipe.verify.expect, perplexity, summary, measurements)
        if recipe.verify
        else [],
        timings=run.timings,
        environment=environment(run.place.device),
    )


def _region_report(plan: Plan, name: str, region: Region) -> RegionReport:
    places = {tensor: place for tensor, place in anatomy_of(plan.checkpoint).places.items() if tensor in region}
    return region_report(region, plan.checkpoint.config, plan.regions[name].kind.origin, places)


def _variant_report(run: Run, name: str, written: Staged | Written | None) -> VariantReport:
    counted = written.marker.edits if isinstance(written, Staged) else run.edits[name]
    edits = counted if counted is not None else run.count(name)
    return VariantReport(
        operations=list(run.plan.variants[name].operations),
        steps=_steps(run.plan.recipe.variants[name]),
        entries=edits.entries,
        changed=edits.changed,
        norm_removed=edits.norm,
        encoding=_encoding(run, edits),
        written=written is not None,
        path=str(written.path) if written else None,
        bytes=written.size if written else None,
        reused=written.reused if written else False,
    )


def _encoding(run: Run, edits: EditCount) -> EncodingReport | None:
    if not codecs_of(run.plan.checkpoint):
        return None
    rounding = edits.rounding
    return EncodingReport(
        blocks=rounding.blocks,
        rescaled=rounding.rescaled,
        rounded=rounding.rounded,
        largest=rounding.largest,
        norm=rounding.norm,
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
