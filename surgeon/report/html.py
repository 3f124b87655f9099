"""`report.html`: the report as one page that needs nothing else.

The page is rendered from the report's data alone and loads nothing. Without its script it is complete, pictures
included; with it they become live, and can be ordered, filtered and asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from surgeon.inside import replacing
from surgeon.report import regions, tables
from surgeon.report.data import Report
from surgeon.report.drawing import Figure, runtime, script_data, svg, write_pictures
from surgeon.report.entries import PassageReport
from surgeon.report.expected import outcome
from surgeon.report.figures import figures
from surgeon.report.language_figures import ORDERS, places
from surgeon.report.markup import HERE, rendered
from surgeon.report.parts import part_lines, part_tables
from surgeon.report.region_figures import EXPONENT, brightest, light_palette
from surgeon.report.sentences import caveat, evidence, headline, measured_lines, no_intervals
from surgeon.report.story import Story, tell
from surgeon.report.words import text_alone

_TONES = ((6.0, "worst"), (3.0, "worse-still"), (1.0, "worse-word"))  # from so many nats more than the base on


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
    from markupsafe import Markup

    if drawn is None:
        drawn = [(figure, svg(figure)) for figure in figures(report)]
    specs = {figure.name: {"spec": figure.spec, "fluid": figure.fluid} for figure, _ in drawn if not figure.scans}
    # What pointing at a scan needs to know: by figure, the scans of its regions.
    scans = {
        figure.name: {name: report.regions[name].model_dump(include={"scan"})["scan"] for name in figure.scans}
        for figure, _ in drawn if figure.scans
    }  # fmt: skip
    story = tell(report)
    return rendered(
        "page.html",
        words=words,
        outcome=outcome,
        part_lines=part_lines,
        part_tables=part_tables,
        report=report,
        story=story,
        headline=headline(report, story),
        evidence=evidence(report, story),
        beside=measured_lines(report, story),
        caveat=caveat(report),
        unsure=no_intervals(report.perplexity, report.language),
        figures={figure.name: (figure, Markup(picture)) for figure, picture in drawn},
        tables=tables,
        regions=regions,
        languages=lambda names: tables.languages_table(
            {name: report.averaged(name) for name in ("base", *names)}, "base", report, places(report)
        ),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        runtime=Markup(runtime() if specs else ""),
        data=Markup(script_data(_data(report, story, specs, scans))),
        # Those that have a section of their own; the draws of one control stand in the table of variants.
        long_sweeps={n: sweep for n, sweep in report.sweeps.items() if sweep.control is None and report.perplexity},
        orders=ORDERS,
        recipe=yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True),
        facts=_facts(report),
    )


def _data(report: Report, story: Story, specs: Mapping[str, Any], scans: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page's script asks for."""
    first = {name: report.regions[next(iter(regions))].scan for name, regions in scans.items()}
    full = {name: brightest(scan) for name, scan in first.items() if scan is not None}
    light = {"colours": light_palette().tolist(), "exponent": EXPONENT}
    return {"figures": specs, "shown": story.shown, "scans": scans, "full": full, "light": light}


def _facts(report: Report) -> list[tuple[str, str]]:
    environment = report.environment
    packages: Mapping[str, str] = environment.get("packages", {})
    facts: list[tuple[str, Any]] = [
        ("model", report.model.name), ("revision", report.model.revision), 
        ("run on", text_alone(report.model.senses) if report.scores or report.perplexity else None),
        ("not of the text model", "; ".join(report.model.left_out)),
        ("content SHA-256", report.model.content_sha256),
        *((key, environment.get(key)) for key in ("python", "platform", "processors", "device")),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("seconds", ", ".join(f"{what} {seconds:g}" for what, seconds in report.timings.items())),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


@dataclass(frozen=True)
class Word:
    """A word as it is shown: the blank before it, its text, how much worse it is, and both losses in words."""

    blank: str
    text: str
    tone: str
    note: str


def words(passage: PassageReport, variant: str) -> list[Word]:
    """Return a passage's words as a variant finds them; a word's loss is the sum of its tokens'."""
    before, after = passage.losses["base"], passage.losses[variant]
    shown = []
    for start, stop in pairwise([*passage.words, len(passage.tokens)]):
        whole = "".join(passage.tokens[start:stop])
        text = whole.lstrip()
        tone, note = _tone(before[start:stop], after[start:stop])
        shown.append(Word(" " if text != whole else "", text, tone if text else "", note))
    return shown


def _tone(before: Sequence[float | None], after: Sequence[float | None]) -> tuple[str, str]:
    own = sum(loss for loss in before if loss is not None)
    if None in after:
        return _TONES[0][1], f"{own:.1f} nats, then not a number"
    now = sum(loss for loss in after if loss is not None)
    tone = next((tone for least, tone in _TONES if now - own >= least), "")
    return tone, f"{own:.1f} nats, then {now:.1f}"
