"""The tables of a report: what became of variants, languages and sweeps, and every other measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from surgeon.model.results import PERPLEXITY, Quantity, exponential
from surgeon.report.data import Report
from surgeon.report.entries import MeasurementReport, OverSeeds, Perplexity, Summary
from surgeon.report.grid import Cell, Grid, Row, Value, as_cells, order_of, times_cell
from surgeon.report.story import own_cuts, rise, scored_languages
from surgeon.report.words import (
    capital,
    coordinate,
    count,
    figure_texts,
    interval,
    is_lost,
    is_number,
    number,
    quantity_text,
    size,
    with_unit,
)
from surgeon.text.languages import Language, language

TIMES = "×\u00a0base"
INTERVAL = "95 %"  # the heading of a column of intervals
# Which columns of variants there is room for on a terminal, and in a glance at an output.
EDITS, GLANCE = (0, 4, 6, 7, 1, 2), (0, 3, 1, 4, 9)


def _summed(item: Summary | None) -> list[Cell]:
    """Return perplexity, ratio and interval of a model."""
    if item is None:
        return [Cell("-")] * 3
    log = item.log_geometric_mean_perplexity
    mean = Cell(number(item.geometric_mean_perplexity), order_of(log))
    return [mean, times_cell(item.ratio_to_base, log), Cell(interval(item.low, item.high))]


def variants_table(report: Report, folder: Path | None = None) -> Grid:
    """Show each variant: what was done, and what became of the perplexity; the points of sweeps have their own.

    With the `folder` of an output those are there too, and whether what was written still is.
    """
    heads = (
        "variant", TIMES, INTERVAL, "perplexity", "entries", "of the model", "changed", "norm removed", "operations",
        "written to",
    )  # fmt: skip
    rows = []
    points = {point for sweep in report.sweeps.values() for point in sweep.points}
    for name, variant in report.variants.items():
        if name in points and not variant.written and folder is None:
            continue
        mean, ratio, bounds = _summed(report.summary.get(name))
        path = Path(*Path(variant.path or name).parts[-2:])
        held = size(variant.bytes or 0) if folder is None or (folder / path).exists() else "gone"
        written = f"{path.as_posix()}, {held}" if variant.written else "measured only"
        called = report.named(name) if folder is None else name
        edits = _edits(report, [name])
        rows.append(Row(as_cells(called, ratio, bounds, mean, *edits, ", ".join(variant.operations), written)))
    for sweep in report.sweeps.values():
        for group in sweep.over_seeds if len(sweep.axes) == 1 and folder is None else ():
            rows.append(_over_seeds(report, group))
    if rows and "base" in report.summary:
        rows.insert(0, Row(as_cells("base", "", "", _summed(report.summary["base"])[0], *[""] * 6)))
        guess = report.guessing()
        if guess is not None and report.model.vocabulary:
            alike = Cell(number(report.model.vocabulary), order_of(math.log(report.model.vocabulary)))
            ratio = Cell(number(exponential(guess)), order_of(guess))
            rows.insert(1, Row(as_cells("a uniform guess", ratio, "", alike, *[""] * 6)))
    note = " ".join(["Perplexity is the geometric mean over the languages.", *_encoding_words(report)])
    return Grid("Variants", heads, rows, note, (INTERVAL, "operations", "written to"))


def own_table(report: Report) -> Grid:
    """Show what cutting a language's own region does to it, beside the median of the others, and its controls."""
    cuts = own_cuts(report)
    many = len(report.perplexity.get("base", {})) > 2
    order = list(dict.fromkeys(code for _, code, _ in cuts))
    rows = []
    for name, code, what in sorted(cuts, key=lambda cut: order.index(cut[1])) if many else ():
        own, median, between = rise(report, name, code)
        times = Cell("-") if between is None else Cell(f"{between:.1f}", between)
        ratios = times_cell(own, own), times_cell(median, median)
        rows.append(Row(as_cells(report.language(code).name, what, *ratios, times, report.label(name))))
    heads = ("language", "cut", "its own ×", "median of the others ×", "rise", "variant")
    note = "Rise: how many times as much the logarithm of the own perplexity rises as the median of the others' does."
    return Grid("A language's own region", heads, rows, note, (heads[1], "variant"))


def _encoding_words(report: Report) -> list[str]:
    """Say what encoding the new values of quantized weights added."""
    lines = []
    for name, variant in report.variants.items():
        done = variant.encoding
        if done is not None and done.rounded:
            lines.append(
                f"{name}: {count(done.blocks, 'block')} encoded again, {done.rescaled:,} of them with another scale; "
                f"rounding adds an error of at most {done.largest:.3g}, L2 {done.norm:.4g}."
            )
    return lines


def _over_seeds(report: Report, group: OverSeeds) -> Row:
    """Show a control drawn with several seeds: means, and the ratio's range instead of an interval."""
    base, first = report.summary["base"].log_geometric_mean_perplexity, group.points[0]
    log = base + math.log(group.mean) if group.mean > 0 else math.nan
    bounds: Value = f"{interval(group.low, group.high)} (range)"
    if len(group.points) == 1:
        bounds = _summed(report.summary[first])[2]
    mean = Cell(number(exponential(log)), order_of(log))
    edits = _edits(report, group.points)
    return Row(as_cells(report.label(first), times_cell(group.mean, log), bounds, mean, *edits, "", ""))


def _edits(report: Report, names: Sequence[str]) -> list[Value]:
    """Return entries, their share of the model, how many changed, and the norm of that: of one variant, or of draws."""
    items, whole = [report.variants[name] for name in names], report.model.parameters
    entries = [item.entries for item in items]
    changed = [item.changed for item in items if item.changed is not None]
    norms = [item.norm_removed for item in items if item.norm_removed is not None]
    norm = f"{sum(norms) / len(norms):.4g}" if norms else None
    return [_extent(entries), max(entries) / whole if whole else None, _extent(changed), norm]


def _extent(counts: Sequence[int]) -> Value:
    low, high = min(counts, default=None), max(counts, default=None)
    return low if low == high else f"{low:,} to {high:,}"


def languages_table(
    measured: Mapping[str, Mapping[str, Perplexity]],
    bits: str,
    report: Report | None = None,
    places: Mapping[str, Mapping[str, Any]] | None = None,
    named: Callable[[str], Language] = language,
) -> Grid:
    """Show perplexity by language: of the first model, and of the others with its ratio to that.

    Args:
        measured: by model and language.
        bits: the model whose bits per byte are shown.
        report: gives the geometric means, and the languages that were scored.
        places: where a language stands in each order of the page (`rank_ORDER`), in the first of which they are shown.
        named: what is known of a language by its code; the report knows it best, if one is given.
    """
    first, *others = measured
    named = report.language if report is not None else named
    scored = scored_languages(report) if report is not None and places is not None else set()
    tested = report.measurements.get(PERPLEXITY) if report is not None else None
    rows = []
    for code, base in measured[first].items():
        known, cells = named(code), [_times(report, name, code, measured[name][code], base) for name in others]
        per_byte = measured[bits][code].bits_per_byte
        data = {key.removeprefix("rank_"): at for key, at in (places or {}).get(code, {}).items() if "rank" in key}
        data["search"] = f"{known.name} {code} {known.script} {known.family}".lower()
        name, own = f"{'• ' if code in scored else ''}{known.name}", Cell(number(base.perplexity), base.log_perplexity)
        rows.append(
            Row(as_cells(name, own, *cells, Cell(f"{per_byte:.3f}", per_byte), known.script, known.family), data)
        )
    label = report.label if report is not None else str
    heads = ("language", *map(label, measured), f"{bits}, bits/byte", "script", "family")
    note = "× is the multiple of the base's, by which its column sorts. • marks the languages that were scored."
    if report is not None and report.guessing() is not None:
        note += " ° is no better than a uniform guess."
    if tested is not None and report is not None:
        note += f" What may be chance has no colour. {_chance_words(report, tested, others)}"
    rows.sort(key=lambda row: int(row.data.get("script", 0)))
    foot = None if report is None else _means(measured)
    return Grid("Perplexity", heads, rows, note, ("script", "family"), foot)


def _times(report: Report | None, name: str, code: str, item: Perplexity, base: Perplexity) -> Cell:
    """Show a variant's perplexity in a language, and the multiple of the base's, as far as it is more than chance."""
    log = item.log_perplexity - base.log_perplexity
    several = report is not None and report.is_range(name)  # whose bounds are the range of the draws
    note = "" if item.low is None else f"{'range' if several else 'interval'} {interval(item.low, item.high)}"
    cell = _beside(number(item.perplexity), times_cell(exponential(log), log), note)
    if report is None:
        return cell
    if is_lost(log, report.guessing(code)):
        cell = replace(cell, text=f"{cell.text}°")
    tested = report.measurements.get(PERPLEXITY)
    figure = tested.found.get(name, {}).get(code, {}).get(PERPLEXITY) if tested is not None else None
    by_chance = figure is not None and not several and figure.beyond_chance is False
    return replace(cell, ratio=None, note=f"{note}; may be chance") if by_chance else cell


def _beside(perplexity: str, times: Cell, note: str = "") -> Cell:
    return replace(times, text=f"×{times.text}", before=perplexity, note=note)


def _means(measured: Mapping[str, Mapping[str, Perplexity]]) -> list[Cell]:
    """Return the geometric means over the languages, of the first model and of the others beside it."""
    first, *others = (
        math.fsum(item.log_perplexity for item in by_language.values()) / len(by_language)
        for by_language in measured.values()
    )
    cells = [_beside(number(exponential(log)), times_cell(exponential(log - first))) for log in others]
    return as_cells("geometric mean", number(exponential(first)), *cells, "", "", "")


def sweep_table(report: Report, name: str) -> Grid:
    """Show a sweep: a line per point with its value on every axis and what became of the perplexity; then the base."""
    sweep, points = report.sweeps[name], list(report.sweeps[name].points.items())
    rows = []
    for i, (point, values) in enumerate(points):
        axes = [Cell(coordinate(value), value if is_number(value) else None) for value in values]
        cells = as_cells(*axes, report.variants[point].entries, *_summed(report.summary.get(point)), point)
        rows.append(Row(cells, ends=i + 1 < len(points) and len(values) > 1 and points[i + 1][1][0] != values[0]))
    heads = (*sweep.axes, "entries", "perplexity", TIMES, INTERVAL, "variant")
    foot = as_cells("base", *[""] * len(sweep.axes), _summed(report.summary.get("base"))[0], "", "", "")
    note = "Perplexity is the geometric mean over the languages; × is the multiple of the base's."
    words = {axis for axis, values in sweep.axes.items() if not all(map(is_number, values))}
    return Grid(f"Sweep {name}", heads, rows, note, {*words, "variant"}, foot)


def scores_table(report: Report) -> Grid:
    """Show the text that importance was scored on."""
    rows = [
        Row(as_cells(report.language(item.language).name, item.kind, item.sequences, item.tokens))
        for item in report.scores
    ]
    heads = ("language", "score", "sequences", "tokens")
    return Grid("Text that importance was scored on", heads, rows, words=("score",))


def measurement_tables(report: Report, kind: str, variants: Sequence[str]) -> list[Grid]:
    """Show a measurement, a table per quantity: a row per group, the base's value, and beside it each variant's."""
    item = report.measurements[kind]
    shown = [name for name in ("base", *variants) if name in item.found]
    grids: list[Grid] = []
    for quantity in item.quantities:
        rows = []
        for group in dict.fromkeys(group for name in shown for group in item.found[name]):
            name = report.language(group).name if item.by == "language" else group
            cells = [_cell(report, kind, quantity, model, group) for model in shown]
            for i, model in enumerate(shown if quantity is item.quantities[0] else ()):
                remark = item.remarks.get(model, {}).get(group)
                cells[i] = cells[i] if remark is None else replace(cells[i], text=f"{cells[i].text}; {remark}")
            rows.append(Row(as_cells(name, *cells)))
        means = [_cell(report, kind, quantity, model, None) for model in shown if item.overall]
        chance = "" if quantity.chance is None else f" By chance {quantity_text(quantity, quantity.chance)}."
        note = f"{capital(quantity.worse)} is worse.{chance}"
        note += "" if quantity.compare == "base" else " In brackets the change from the base; * is more than chance."
        note += "" if grids else f" {_chance_words(report, item, variants)}".rstrip()
        heads = (item.by, *map(report.label, shown))
        grids.append(
            Grid(capital(with_unit(quantity)), heads, rows, note, foot=as_cells("mean", *means) if means else None)
        )
    return grids


def _chance_words(report: Report, item: MeasurementReport, variants: Sequence[str]) -> str:
    """Say how many groups are worse beyond chance, by variant, and how many would be by chance."""
    parts, first = [], item.quantities[0]
    base, sign = 1.0 if first.compare == "ratio" else 0.0, 1 if first.worse == "more" else -1
    for name in variants:
        figures = [row[first.name] for row in item.found.get(name, {}).values() if first.name in row]
        tested = [figure for figure in figures if figure.p is not None]
        if tested:
            worse = sum(bool(f.beyond_chance) and sign * ((f.change or 0.0) - base) > 0 for f in tested)
            parts.append(f"{report.named(name)}: {worse} of {len(tested)}")
    if not parts:
        return ""
    most = max(len(item.found[name]) for name in variants if name in item.found)
    return (
        f"Worse beyond chance (false discovery rate 5 %): {'; '.join(parts)}. By chance alone some "
        f"{most * 0.025:.1f} of {most} intervals would lie on the worse side."
    )


def summary_table(report: Report) -> Grid:
    """Show every measurement but perplexity over all groups: a row per variant, a column per quantity."""
    others = {kind: item for kind, item in report.measurements.items() if kind != PERPLEXITY and item.overall}
    told = [(kind, quantity) for kind, item in others.items() for quantity in item.quantities]
    draws = {draw for name in report.measured_alone for draw in report.draws(name)}
    rows = []
    for name in dict.fromkeys(name for item in others.values() for name in item.overall):
        if name in report.measured_alone or name not in draws:
            rows.append(Row(as_cells(report.label(name), *(_cell(report, *one, name, None) for one in told))))
    heads = [capital(with_unit(quantity)) for _, quantity in told]
    note = "Means over all languages or tasks; in brackets the change from the base."
    return Grid("Other measurements", ("variant", *heads), rows, note)


def _cell(report: Report, kind: str, quantity: Quantity, model: str, group: str | None) -> Cell:
    """Show a value of a group, or the mean of all, and in brackets its change; bounds stand in the note."""
    figure = report.figure(kind, model, group, quantity.name)
    if figure is None:
        return Cell("-")
    said, change, bounds = figure_texts(quantity, figure)
    if change is not None:
        said += f" ({change}){'*' if figure.beyond_chance else ''}"
    note = "" if bounds is None else f"{'range' if report.is_range(model) else 'interval'} {bounds}"
    return Cell(said, order_of(figure.value), note=note)
