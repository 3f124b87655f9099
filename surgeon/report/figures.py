"""The figures of a report, as Vega-Lite: which there are, and in which order."""

from __future__ import annotations

from dataclasses import replace

from surgeon.report.data import Report
from surgeon.report.drawing import Figure
from surgeon.report.language_figures import perplexity_figure, ratio_figure
from surgeon.report.measurement_figures import measurement_figures
from surgeon.report.parts import part_figures
from surgeon.report.region_figures import crowding_figure, overlap_figure
from surgeon.report.scan import scan_figures
from surgeon.report.story import regions_of, tell
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
    if any(region in report.regions for region in regions_of(report, variant)):
        result += [figure for figure in scan_figures(report, story) if figure.name == "scan"]
    return [replace(figure, key=True) for figure in result]
