"""Several runs on one page: models, checkpoints of a training run, recipes; the same chart, one colour a run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import InputError
from surgeon.inside import replacing
from surgeon.model.results import exponential
from surgeon.report.charts import (
    BROKEN,
    SERIES,
    SHAPES,
    Spec,
    amount,
    closer,
    dots,
    drawn_ratios,
    finished,
    hue_and_shape,
    is_drawable,
    layer,
    multiples,
    named,
    the_base,
    tips,
    words,
)
from surgeon.report.data import Report
from surgeon.report.drawing import Figure, svg, write_pictures
from surgeon.report.grid import Cell, Grid, Row, as_cells
from surgeon.report.markup import rendered
from surgeon.report.story import Story, log_ratio, ratio, tell
from surgeon.report.words import interval, is_lost, number

_MOST = 24  # runs on one page


@dataclass(frozen=True)
class Compared:
    """One run: the name that it has on the page, its report, and what that is about."""

    name: str
    report: Report
    story: Story


def open_runs(outputs: Sequence[str | Path]) -> list[Compared]:
    """Read the reports of some output folders; runs are named by their folders, as much of these as tells them apart.

    Raises:
        InputError: there are fewer than two, one has no report or measured nothing, or they share no language.
    """
    folders = [Path(os.path.expanduser(output)) for output in outputs]
    if not 2 <= len(folders) <= _MOST:
        raise InputError(f"compare takes 2 to {_MOST} output folders, and got {len(folders)}")
    reports = [Report.load(folder) for folder in folders]
    for folder, report in zip(folders, reports, strict=True):
        if "base" not in report.perplexity:
            raise InputError(f"{folder}: that run measured nothing; run it again with `verify:` in its recipe")
    runs = [Compared(name, report, tell(report)) for name, report in zip(_names(folders), reports, strict=True)]
    if not shared_languages(runs):
        raise InputError("these runs have no language in common")
    return runs


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("the same folder is given twice")


def shared_languages(runs: Sequence[Compared]) -> list[str]:
    """Return the languages that all runs measured, in the order of the first."""
    first, *others = (run.report.perplexity["base"] for run in runs)
    return [code for code in first if all(code in other for other in others)]


def comparison_figures(runs: Sequence[Compared]) -> list[Figure]:
    """Return the chart of what each run's cut did by language, and that of the bases themselves."""
    cuts = [run for run in runs if run.story.cut is not None]
    return [*([_effects(cuts, shared_languages(runs))] if len(cuts) > 1 else []), _bases(runs)]


def _looks(runs: Sequence[Compared]) -> tuple[Spec, Spec]:
    """Return colour and shape, one a run."""
    looks = [(SERIES[i % len(SERIES)], SHAPES[(i + i // len(SERIES)) % len(SHAPES)]) for i in range(len(runs))]
    return hue_and_shape("run", [run.name for run in runs], {"title": None}, looks)


def _effects(runs: Sequence[Compared], languages: Sequence[str]) -> Figure:
    logs = {(run.name, code): log_ratio(run.report, str(run.story.cut), code) for run in runs for code in languages}
    guesses = {(run.name, code): run.report.guessing(code) for run in runs for code in languages}
    drawn = drawn_ratios([closer(log, guesses[key]) for key, log in logs.items()])
    rows = []
    for run in runs:
        for code in languages:
            log, guess = logs[run.name, code], guesses[run.name, code]
            times, item = number(exponential(log)), run.report.averaged(str(run.story.cut))[code]
            said = f"×{times}{', no better than guessing' if is_lost(log, guess) else ''}"
            rows.append({
                "run": run.name, "language": run.report.language(code).name, "times": said,
                "ratio": drawn(closer(log, guess)), "broken": "" if is_drawable(log) else times,
                "variant": run.report.label(str(run.story.cut)), "interval": interval(item.low, item.high),
                "model": run.report.model.name,
            })  # fmt: skip
    hue, shape = _looks(runs)
    hover = tips(language="language", run="run", times="of its base's perplexity", interval="95 %", variant="variant",
                 model="model")  # fmt: skip
    encoding = {
        "x": multiples(True, "perplexity, multiple of the run's own base", orient="top"),
        "y": named("language", None), "yOffset": words("run", sort=[run.name for run in runs]),
    }  # fmt: skip
    layers = [
        layer("rule", {"strokeWidth": 1.2}, x2={"datum": 1}, color=hue),
        dots(40, hover, hue, shape),
        BROKEN,
    ]
    height = {"step": max(20, 7 * len(runs)), "for": "position"}
    spec = {
        "data": {"values": rows}, "width": 470, "height": height,
        "layer": [{"encoding": encoding, "layer": layers}, the_base("x")],
    }  # fmt: skip
    lost = any(is_lost(log, guesses[key]) for key, log in logs.items())
    caption = "What each run's cut did to its own base, on a logarithmic scale. Right is worse."
    caption += " The part that is no better than guessing is compressed." if lost else ""
    return Figure("effects", "What each cut did, by language", caption, finished(spec), fluid=True, key=True)


def _bases(runs: Sequence[Compared]) -> Figure:
    rows = [
        {
            "run": run.name, "language": run.report.language(code).name, "bits": round(item.bits_per_byte, 5),
            "said": f"{item.bits_per_byte:.3f}", "perplexity": number(item.perplexity),
            "model": run.report.model.name,
        }
        for run in runs for code in shared_languages(runs) for item in [run.report.perplexity["base"][code]]
        if math.isfinite(item.bits_per_byte)
    ]  # fmt: skip
    hue, shape = _looks(runs)
    hover = tips(language="language", run="run", said="bits per byte", perplexity="perplexity", model="model")
    x = amount("bits", title="bits per byte", scale={"zero": False}, axis={"orient": "top"})
    spec = {
        "data": {"values": rows}, "width": 470, "height": {"step": 20},
        "encoding": {"x": x, "y": named("language", None)}, "layer": [dots(46, hover, hue, shape, 0.9)],
    }  # fmt: skip
    caption = "How well each run's base predicts a text. Left is better. Bits per byte compare any two models."
    return Figure("bases", "The models themselves, by language", caption, finished(spec), fluid=True, key=True)


def comparison_table(runs: Sequence[Compared]) -> Grid:
    """Show each run: its model and cut, what became of the perplexity, and that of its controls."""
    rows, languages = [], shared_languages(runs)
    for run in runs:
        report, cut = run.report, run.story.cut
        bits = sum(report.perplexity["base"][code].bits_per_byte for code in languages) / len(languages)
        named, times, bounds = Cell("-"), Cell("-"), "-"
        if cut is not None:
            item, named = report.mean(cut), Cell(report.label(cut))
            times = Cell(number(item.ratio_to_base), item.log_geometric_mean_perplexity, ratio=item.ratio_to_base)
            bounds = interval(item.low, item.high) + (" (range)" if report.is_range(cut) else "")
        controls = [f"{report.label(name)} ×{number(report.mean(name).ratio_to_base)}" for name in run.story.controls]
        base = number(report.summary["base"].geometric_mean_perplexity)
        beside = ("; ".join(controls) or "-", base, Cell(f"{bits:.3f}", bits))
        rows.append(Row(as_cells(run.name, report.model.name, named, times, bounds, *beside)))
    heads = ("run", "model", "cut", "× its base", "95 %", "controls", "base", "bits/byte")
    note = "Geometric means over each run's languages; bits per byte over those that all runs measured."
    return Grid("Runs", heads, rows, note, ("model", "cut", "95 %", "controls"))


def comparison_data(runs: Sequence[Compared]) -> dict[str, Any]:
    """Return the same as plain data: by run its model, cut, mean ratio, and ratios by language."""
    data = {}
    for run in runs:
        report, cut = run.report, run.story.cut
        languages = shared_languages(runs) if cut is not None else []
        data[run.name] = {
            "model": report.model.name, "variant": cut,
            "languages": {code: ratio(report, str(cut), code) for code in languages},
            "ratio_to_base": report.mean(cut).ratio_to_base if cut is not None else None,
            "base_perplexity": report.summary["base"].geometric_mean_perplexity,
        }  # fmt: skip
    return data


def write_comparison(runs: Sequence[Compared], output: str | Path) -> Path:
    """Write the page `index.html`, and its figures beside it, into a folder; returns the page."""
    from markupsafe import Markup

    folder = Path(os.path.expanduser(output))
    drawn = [(figure, svg(figure)) for figure in comparison_figures(runs)]
    for figure, picture in drawn:
        write_pictures(figure, picture, folder / "figures")
    text = rendered(
        "compare.html",
        runs=runs,
        table=comparison_table(runs),
        figures=[(figure, Markup(picture)) for figure, picture in drawn],
    )
    with replacing(folder / "index.html") as staged:
        staged.write_text(text, encoding="utf-8")
    return folder / "index.html"
