"""The figures of a report, as Vega-Lite: which there are, and in which order."""

from __future__ import annotations

from dataclasses import replace

from surgeon.errors import InputError, did_you_mean
from surgeon.region.region import Region
from surgeon.report.data import Report
from surgeon.report.drawing import Figure
from surgeon.report.entries import ModelReport
from surgeon.report.language_figures import measurement_figures, perplexity_figure, ratio_figure
from surgeon.report.parts import part_figures
from surgeon.report.region_figures import crowding_figure, overlap_figure, scan_figures
from surgeon.report.regions import region_report
from surgeon.report.story import Story, tell
from surgeon.report.sweeps import sweep_figure


def figures(report: Report) -> list[Figure]:
    """Return all figures that the report has data for; the key ones, which a page shows first, come first."""
    story, result = tell(report), []
    if report.perplexity:
        alone = report.only(report.measured_alone)
        if story.cut is not None:
            result += [perplexity_figure(alone, story), ratio_figure(alone, story)]
        result += [sweep_figure(report, name) for name, sweep in report.sweeps.items() if sweep.control is None]
    result += part_figures(report)
    result += scan_figures(report, story)
    result += measurement_figures(report, story)
    if any(abs(pair.jaccard - pair.by_chance) >= 0.01 for pair in report.overlaps):
        result.append(overlap_figure(report))
    if any(region.spreads for region in report.regions.values()):
        result.append(crowding_figure(report))
    return result


def variant_figures(report: Report, variant: str) -> list[Figure]:
    """Return the figures of one variant's card: what it did, and where its region is if the report describes that."""
    story = tell(report, variant)
    result = [perplexity_figure(report.only([variant, *report.measured_alone]), story)]
    if any(region in report.regions for region in report.variants[variant].regions):
        result += [figure for figure in scan_figures(report, story) if figure.name == "scan"]
    return [replace(figure, key=True) for figure in result]


def region_figure(region: Region, name: str = "region") -> Figure | None:
    """Return the scan of a region; None if nothing in it lies along the residual stream."""
    entry = region_report(region, {}, "")
    if entry.scan is None:
        return None
    nothing = ModelReport(
        name="", revision=None, model_type=None, parameters=0, tensors=0, shards=0, bytes=0, content_sha256=None
    )
    bare = Report(name=name, recipe={}, model=nothing, regions={name: entry}, timings={}, environment={})
    (figure,) = scan_figures(bare, Story(None, (), name, None, {}))
    return figure


def report_figure(report: Report, name: str | None = None) -> Figure | None:
    """Return a figure of a report by its name, such as `perplexity`, `ratios` or `scan`; the first if not given.

    Raises:
        InputError: the report has no figure of that name.
    """
    by_name = {figure.name: figure for figure in figures(report)}
    if name is None:
        return next(iter(by_name.values()), None)
    if name not in by_name:
        raise InputError(f"the report has no figure {name!r}{did_you_mean(name, by_name)}")
    return by_name[name]
