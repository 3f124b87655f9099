"""Several runs on one page: models, checkpoints of a training run, recipes; the same chart, one colour a run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import InputError
from surgeon.inside import replacing
from surgeon.model.results import exponential
from surgeon.report.data import Report
from surgeon.report.drawing import (
    BROKEN,
    PALETTE,
    SERIES,
    SHAPES,
    Figure,
    Spec,
    amount,
    closer,
    colour,
    drawn_ratios,
    finished,
    is_drawable,
    layer,
    multiples,
    named,
    svg,
    the_base,
    tips,
    words,
    write_pictures,
)
from surgeon.report.grid import Cell, Grid, Row
from surgeon.report.story import Story, log_ratio, mean_ratio, tell
from surgeon.report.templates import HERE, rendered
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
    runs = [
        Compared(name, report, tell(report)) for name, report in zip(_names(folders), reports, strict=True)
    ]  # fmt: skip
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
    names = [run.name for run in runs]
    hues = [colour(SERIES[i % len(SERIES)]) for i in range(len(names))]
    shapes = [SHAPES[(i + i // len(SERIES)) % len(SHAPES)] for i in range(len(names))]
    hue, shape = (
        words("run", scale={"domain": names, "range": values}, legend={"title": None}) for values in (hues, shapes)
    )
    return hue, shape


def _effects(runs: Sequence[Compared], languages: Sequence[str]) -> Figure:
    logs = {(run.name, code): log_ratio(run.report, str(run.story.cut), code) for run in runs for code in languages}
    guesses = {(run.name, code): run.report.guessing(code) for run in runs for code in languages}
    drawn = drawn_ratios([closer(log, guesses[key]) for key, log in logs.items()])
    rows = []
    for run in runs:
        for code in languages:
            log, guess = logs[run.name, code], guesses[run.name, code]
            times, found = number(exponential(log)), run.report.averaged(str(run.story.cut))[code]
            said = f"×{times}{', no better than guessing' if is_lost(log, guess) else ''}"
            rows.append({
                "run": run.name, "language": run.report.language(code).name, "times": said,
                "ratio": drawn(closer(log, guess)), "broken": "" if is_drawable(log) else times,
                "variant": run.report.label(str(run.story.cut)), "interval": interval(found.low, found.high),
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
        layer("point", {"filled": True, "size": 40, "opacity": 1}, tooltip=hover, color=hue, shape=shape),
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
            "run": run.name, "language": run.report.language(code).name, "bits": round(found.bits_per_byte, 5),
            "said": f"{found.bits_per_byte:.3f}", "perplexity": number(found.perplexity),
            "model": run.report.model.name,
        }
        for run in runs for code in shared_languages(runs) for found in [run.report.perplexity["base"][code]]
        if math.isfinite(found.bits_per_byte)
    ]  # fmt: skip
    hue, shape = _looks(runs)
    hover = tips(language="language", run="run", said="bits per byte", perplexity="perplexity", model="model")
    x = amount("bits", title="bits per byte", scale={"zero": False}, axis={"orient": "top"})
    mark = layer("point", {"filled": True, "size": 46, "opacity": 0.9}, tooltip=hover, color=hue, shape=shape)
    spec = {
        "data": {"values": rows}, "width": 470, "height": {"step": 20},
        "encoding": {"x": x, "y": named("language", None)}, "layer": [mark],
    }  # fmt: skip
    caption = "How well each run's base predicts a text. Left is better. Bits per byte compare any two models."
    return Figure("bases", "The models themselves, by language", caption, finished(spec), fluid=True, key=True)


def comparison_table(runs: Sequence[Compared]) -> Grid:
    """Show each run: its model and cut, what became of the perplexity, and that of its controls."""
    rows = []
    for run in runs:
        report, cut = run.report, run.story.cut
        base = report.perplexity["base"]
        bits = sum(base[code].bits_per_byte for code in shared_languages(runs)) / len(shared_languages(runs))
        found = report.summary[cut] if cut is not None else None
        draws = [report.summary[draw].ratio_to_base for draw in report.draws(cut)] if cut is not None else []
        times = mean_ratio(report, cut) if cut is not None else math.nan
        bounds = "-" if found is None else interval(found.low, found.high)
        bounds = f"{interval(min(draws), max(draws))} (range)" if len(draws) > 1 else bounds
        controls = [f"{report.label(name)} ×{number(mean_ratio(report, name))}" for name in run.story.controls]
        log = None if found is None else found.log_geometric_mean_perplexity
        rows.append(Row([
            Cell(run.name), Cell(report.model.name), Cell(report.label(cut) if cut else "-"),
            Cell("-") if found is None else Cell(number(times), log, ratio=times),
            Cell(bounds), Cell("; ".join(controls) or "-"),
            Cell(number(report.summary["base"].geometric_mean_perplexity)), Cell(f"{bits:.3f}", bits),
        ]))  # fmt: skip
    heads = ("run", "model", "cut", "× its base", "95 %", "controls", "base", "bits/byte")
    note = "Geometric means over each run's languages; bits per byte over those that all runs measured."
    return Grid("Runs", heads, rows, note, ("model", "cut", "95 %", "controls"))


def comparison_data(runs: Sequence[Compared]) -> dict[str, Any]:
    """Return the same as plain data: by run its model, cut, mean ratio, and ratios by language."""
    found: dict[str, Any] = {}
    for run in runs:
        cut = run.story.cut
        by_language: Mapping[str, float] = {}
        if cut is not None:
            by_language = {code: exponential(log_ratio(run.report, cut, code)) for code in shared_languages(runs)}
        found[run.name] = {
            "model": run.report.model.name, "variant": cut, "languages": by_language,
            "ratio_to_base": mean_ratio(run.report, cut) if cut is not None else None,
            "base_perplexity": run.report.summary["base"].geometric_mean_perplexity,
        }  # fmt: skip
    return found


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
        palette=PALETTE,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
    )
    with replacing(folder / "index.html") as staged:
        staged.write_text(text, encoding="utf-8")
    return folder / "index.html"
