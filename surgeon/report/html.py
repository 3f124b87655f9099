"""`report.html`: the report as one page that needs nothing else.

The page is rendered from the report's data alone and loads nothing. Without its script it is complete, pictures
included; with it they become live, and can be ordered, filtered and asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from surgeon.checkpoint.storage import replacing
from surgeon.report.data import Expectation, Report
from surgeon.report.drawing import PALETTE, Figure, runtime, script_data, svg, write_pictures
from surgeon.report.figures import ORDERS, figures, places
from surgeon.report.story import SAME, caveat, log_ratio, ratio, scored_languages, sentence, tell
from surgeon.report.words import bounds, coordinate, count, is_number, number, percent, size, stopped_note
from surgeon.text.languages import language, language_name
from surgeon.visible import visible

_HERE = Path(__file__).parent
_LIVE = ("perplexity", "ratios", "sweep-", "overlaps", "crowding")


def write_page(report: Report, output: str | Path) -> list[Path]:
    """Write `report.html`, and its figures as files into `figures/`, into an output folder; returns them."""
    output = Path(output)
    drawn = [(figure, svg(figure)) for figure in figures(report)]
    files = [path for figure, picture in drawn for path in write_pictures(figure, picture, output / "figures")]
    with replacing(output / "report.html") as staged:
        staged.write_text(page(report, drawn), encoding="utf-8")
    return [output / "report.html", *files]


def page(report: Report, drawn: Sequence[tuple[Figure, str]] | None = None) -> str:
    """Return the whole page; `drawn` are the report's figures and their drawings, if they are there already."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    if drawn is None:
        drawn = [(figure, svg(figure)) for figure in figures(report)]
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number, "percent": percent, "size": size, "visible": visible, "bounds": bounds, "count": count,
        "coordinate": coordinate, "language": language, "language_name": language_name, "stopped": stopped_note,
        "effect": _effect, "exactly": _exactly, "short": _relative,
    }  # fmt: skip
    live = [figure for figure, _ in drawn if figure.name.startswith(_LIVE)]
    specs = {figure.name: {"spec": figure.spec, "fluid": figure.fluid} for figure in live}
    story = tell(report)
    return environment.get_template("page.html").render(
        report=report,
        story=story,
        sentence=sentence(report, story),
        caveat=caveat(report),
        figures={figure.name: (figure, Markup(picture)) for figure, picture in drawn},
        palette=PALETTE,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        runtime=Markup(runtime() if live else ""),
        data=Markup(script_data({"figures": specs, "shown": story.shown, "scans": _scans(report, drawn)})),
        languages=_languages(report, report.measured_alone),
        swept={name: _languages(report, list(sweep.points)) for name, sweep in report.sweeps.items()},
        verdicts=[_verdict(item) for item in report.expectations],
        variants=_variants(report),
        points={
            name: [_point(report, point, values) for point, values in sweep.points.items()]
            for name, sweep in report.sweeps.items()
        },
        orders=ORDERS,
        recipe=yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True),
        facts=_facts(report),
    )


def _scans(report: Report, drawn: Sequence[tuple[Figure, str]]) -> dict[str, Any]:
    """Return what pointing at a scan needs to know: by figure, the scans of its regions."""
    story, found = tell(report), {}
    for figure, _ in drawn:
        if figure.name.startswith("scan"):
            named = [figure.name.removeprefix("scan-")] if figure.name != "scan" else [story.region, story.beside]
            scans = {name: report.regions[name].scan for name in named if name is not None}
            found[figure.name] = {name: scan.model_dump() for name, scan in scans.items() if scan is not None}
    return found


def _languages(report: Report, variants: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row of the table for each language: names, place in every order, and its figures by variant."""
    if not report.perplexity:
        return []
    scored, rank = scored_languages(report), places(report)
    return [
        {
            "code": code, "known": language(code), "scored": code in scored, "base": base, "ranks": rank[code],
            "cells": [
                {"found": report.perplexity[name][code], "ratio": ratio(report, name, code),
                 "order": _order(log_ratio(report, name, code))}
                for name in variants
            ],
        }
        for code, base in sorted(report.perplexity["base"].items(), key=lambda item: rank[item[0]]["rank_script"])
    ]  # fmt: skip


def _order(log: float) -> float:
    """Return what a column is sorted by; what is broken comes last."""
    return round(log, 6) if math.isfinite(log) else 1e9


def _effect(value: float) -> str:
    """Return the class of a ratio, by which it is coloured."""
    if math.isnan(value) or value >= 10:
        return "much-worse"
    return "same" if abs(value - 1) < SAME else "worse" if value >= 1.05 else ""


def _exactly(value: float) -> str:
    return "not a number" if math.isnan(value) else f"{value:.3f}" if value < 100 else number(value)


def _relative(path: str) -> str:
    """Shorten the path of a variant to what follows the output folder."""
    return "/".join(Path(path).parts[-2:])


def _verdict(item: Expectation) -> dict[str, Any]:
    where = f" in {language_name(item.language)}" if item.language else ""
    return {"item": item, "where": where, "expected": bounds(item.ratio_at_least, item.ratio_at_most)}


def _variants(report: Report) -> dict[str, Any]:
    """Return the variants that stand in the table; the points of sweeps have tables of their own."""
    points = {point for sweep in report.sweeps.values() for point in sweep.points}
    return {name: variant for name, variant in report.variants.items() if variant.written or name not in points}


def _point(report: Report, point: str, values: Sequence[Any]) -> dict[str, Any]:
    summary = report.summary.get(point)
    return {
        "name": point, "values": [(coordinate(value), value if is_number(value) else None) for value in values],
        "summary": summary, "order": _order(summary.log_geometric_mean_perplexity) if summary else 0,
        "entries": report.variants[point].entries,
    }  # fmt: skip


def _facts(report: Report) -> list[tuple[str, str]]:
    environment = report.environment
    packages: Mapping[str, str] = environment.get("packages", {})
    facts: list[tuple[str, Any]] = [
        ("model", report.model.name), ("revision", report.model.revision),
        ("content SHA-256", report.model.content_sha256),
        *((key, environment.get(key)) for key in ("python", "platform", "processors", "device")),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("seconds", ", ".join(f"{what} {seconds:g}" for what, seconds in report.timings.items())),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in facts if value not in (None, "")]
