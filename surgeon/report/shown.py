"""Pictures of single objects, for a notebook: a region, a report."""

from __future__ import annotations

from surgeon.errors import InputError, did_you_mean
from surgeon.region.region import Region
from surgeon.report.data import ModelReport, Report
from surgeon.report.drawing import Figure
from surgeon.report.figures import figures
from surgeon.report.regions import region_report
from surgeon.report.scan import scan_figures
from surgeon.report.story import Story


def region_figure(region: Region, name: str = "region") -> Figure | None:
    """Return the scan of a region; None if nothing in it lies along the residual stream."""
    made = region_report(region, {}, "")
    if made.scan is None:
        return None
    nothing = ModelReport(
        name="", revision=None, model_type=None, parameters=0, tensors=0, shards=0, bytes=0, content_sha256=None
    )
    bare = Report(name=name, recipe={}, model=nothing, regions={name: made}, timings={}, environment={})
    (figure,) = scan_figures(bare, Story(None, (), name, None, {}))
    return figure


def report_figure(report: Report, name: str | None = None) -> Figure | None:
    """Return a figure of a report by its name, such as `perplexity`, `ratios` or `scan`; the first if not given.

    Raises:
        InputError: the report has no figure of that name.
    """
    made = {figure.name: figure for figure in figures(report)}
    if name is None:
        return next(iter(made.values()), None)
    if name not in made:
        raise InputError(f"the report has no figure {name!r}{did_you_mean(name, made)}")
    return made[name]
