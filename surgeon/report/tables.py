"""The tables of a report: what stands in them, once for the terminal, the page and the cards."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from surgeon.model.results import PERPLEXITY, Quantity, exponential
from surgeon.report.data import Report
from surgeon.report.sections import Figure, OverSeeds, Perplexity, RegionReport, Summary
from surgeon.report.story import SAME, own_cuts, rise, scored_languages
from surgeon.report.words import (
    coordinate,
    count,
    interval,
    is_lost,
    is_number,
    number,
    percent,
    quantity_text,
    roles_in_order,
    size,
)
from surgeon.text.languages import Language, language

TIMES = "×\u00a0base"
INTERVAL = "95 %"  # the heading of a column of intervals
# Which columns there is room for on a terminal, of variants and regions, and of variants in a glance at an output.
EDITS, CROWDS, GLANCE = (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4), (0, 6, 4, 1, 9)


@dataclass(frozen=True)
class Cell:
    """What stands in a cell; its column sorts by `value`, or by the text if that is None.

    `before` stands dimly before the text, `ratio` to the base's gives it its colour, pointing at it says `note`.
    """

    text: str
    value: float | None = None
    before: str = ""
    ratio: float | None = None
    note: str = ""

    @property
    def tone(self) -> str:
        """How much worse the ratio is, in the words of the page's style."""
        if self.ratio is None:
            return ""
        if math.isnan(self.ratio) or self.ratio >= 10:
            return "much-worse"
        return "same" if abs(self.ratio - 1) < SAME else "worse" if self.ratio >= 1.05 else ""


@dataclass(frozen=True)
class Row:
    """Cells of one thing; `data` is what a page's script asks of it; a group of rows `ends` with it."""

    cells: list[Cell]
    data: Mapping[str, Any] = field(default_factory=dict)
    ends: bool = False


@dataclass(frozen=True)
class Grid:
    """A table: the first column and those of `words` hold words, the others numbers; `foot` stands below a line."""

    title: str
    heads: tuple[str, ...]
    rows: list[Row]
    note: str = ""
    words: Collection[str] = ()
    foot: list[Cell] | None = None

    def columns(self, *kept: int) -> Grid:
        """Return some columns, in the order asked for, and the rows that have something there."""
        rows = [replace(row, cells=[row.cells[i] for i in kept]) for row in self.rows]
        rows = [row for row in rows if any(cell.text for cell in row.cells[1:])]
        heads, foot = tuple(self.heads[i] for i in kept), self.foot and [self.foot[i] for i in kept]
        return replace(self, heads=heads, rows=rows, foot=foot)


Value: TypeAlias = "Cell | str | int | float | None"


def _cells(*values: Value) -> list[Cell]:
    """Turn values into cells: whole numbers are counts, others shares, None is a dash."""
    return [value if isinstance(value, Cell) else _cell(value) for value in values]


def _cell(value: str | int | float | None) -> Cell:
    if value is None or isinstance(value, str):
        return Cell("-" if value is None else value)
    return Cell(f"{value:,}" if isinstance(value, int) else percent(value), value)


def _times(ratio: float, log: float = 0.0) -> Cell:
    """Say a multiple of the base's; a column of them is sorted by their logarithms, what is broken last."""
    return Cell(number(ratio), _order(log), ratio=ratio)


def _order(log: float) -> float:
    return round(log, 6) if math.isfinite(log) else 1e9


def _summed(item: Summary | None) -> list[Cell]:
    """Return perplexity, ratio and interval of a model."""
    if item is None:
        return [Cell("-")] * 3
    log = item.log_geometric_mean_perplexity
    mean = Cell(number(item.geometric_mean_perplexity), _order(log))
    return [mean, _times(item.ratio_to_base, log), Cell(interval(item.low, item.high))]


def variants_table(report: Report, folder: Path | None = None) -> Grid:
    """Show each variant: what was done, and what became of the perplexity; the points of sweeps have their own.

    With the `folder` of an output those are there too, and whether what was written still is.
    """
    heads = (
        "variant", "entries", "changed", "norm removed", TIMES, INTERVAL, "perplexity", "of the model", "operations",
        "written to",
    )  # fmt: skip
    rows = []
    points = {point for sweep in report.sweeps.values() for point in sweep.points}
    for name, variant in report.variants.items():
        if name in points and not variant.written and folder is None:
            continue
        mean, ratio, bounds = _summed(report.summary.get(name))
        norm = None if variant.norm_removed is None else f"{variant.norm_removed:.4g}"
        share = variant.entries / report.model.parameters if report.model.parameters else None
        place = Path(*Path(variant.path or name).parts[-2:])
        there = size(variant.bytes or 0) if folder is None or (folder / place).exists() else "gone"
        written = f"{place.as_posix()}, {there}" if variant.written else "measured only"
        called = report.named(name) if folder is None else name
        edits = _cells(called, variant.entries, variant.changed, norm, ratio, bounds, mean, share)
        rows.append(Row([*edits, *_cells(", ".join(variant.operations), written)]))
    for name, sweep in report.sweeps.items():
        for group in sweep.over_seeds if len(sweep.axes) == 1 and folder is None else ():
            rows.append(Row(_cells(*_over_seeds(report, name, group), *[""] * 4)))
    if rows and "base" in report.summary:
        rows.insert(0, Row(_cells("base", *[""] * 5, _summed(report.summary["base"])[0], *[""] * 3)))
        guess = report.guessing()
        if guess is not None and report.model.vocabulary:
            alike = Cell(number(report.model.vocabulary), _order(math.log(report.model.vocabulary)))
            ratio = Cell(number(exponential(guess)), _order(guess))
            rows.insert(1, Row(_cells("a uniform guess", *[""] * 3, ratio, "", alike, *[""] * 3)))
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
        cells = _cells(
            report.language(code).name, what, _times(own, own), _times(median, median), times, report.named(name)
        )
        rows.append(Row(cells))
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


def _over_seeds(report: Report, name: str, group: OverSeeds) -> list[Value]:
    """Show a control drawn with several seeds: mean norm and ratio, and the ratio's range instead of an interval."""
    drawn = [report.variants[point] for point in group.points]
    norms = [item.norm_removed for item in drawn if item.norm_removed is not None]
    entries, changed = ([getattr(item, key) for item in drawn] for key in ("entries", "changed"))
    norm = f"{sum(norms) / len(norms):.4g}" if norms else None
    counts = [_extent(entries), _extent([value for value in changed if value is not None])]
    return [
        f"{name}, {len(drawn)} seeds",
        *counts,
        norm,
        _times(group.mean),
        f"{interval(group.low, group.high)} (range)",
    ]


def _extent(counts: Sequence[int]) -> Value:
    low, high = min(counts, default=None), max(counts, default=None)
    return low if low == high else f"{low:,} to {high:,}"


def languages_table(
    found: Mapping[str, Mapping[str, Perplexity]],
    bits: str,
    report: Report | None = None,
    places: Mapping[str, Mapping[str, Any]] | None = None,
    named: Callable[[str], Language] = language,
) -> Grid:
    """Show perplexity by language: of the first model, and of the others with its ratio to that.

    Args:
        found: what was measured, by model and language.
        bits: the model whose bits per byte are shown.
        report: gives the geometric means, and the languages that were scored.
        places: where a language stands in each order of the page (`rank_ORDER`), in the first of which they are shown.
        named: what is known of a language by its code; the report knows it best, if one is given.
    """
    first, *others = found
    named = report.language if report is not None else named
    scored = scored_languages(report) if report is not None and places is not None else set()
    tested = report.measurements.get(PERPLEXITY) if report is not None else None
    rows = []
    for code, base in found[first].items():
        known, cells = named(code), []
        for name in others:
            item = found[name][code]
            log = item.log_perplexity - base.log_perplexity
            note = "" if item.low is None else f"interval {interval(item.low, item.high)}"
            times = _times(exponential(log), log)
            if report is not None and is_lost(log, report.guessing(code)):
                times = replace(times, text=f"{times.text}°")
            cell = _beside(number(item.perplexity), times, note)
            by_chance = tested is not None and tested.beyond_chance(name, code, PERPLEXITY) is False
            cells.append(replace(cell, ratio=None, note=f"{note}; may be chance") if by_chance else cell)
        per_byte = found[bits][code].bits_per_byte
        data = {key.removeprefix("rank_"): at for key, at in (places or {}).get(code, {}).items() if "rank" in key}
        data["search"] = f"{known.name} {code} {known.script} {known.family}".lower()
        name, own = f"{'• ' if code in scored else ''}{known.name}", Cell(number(base.perplexity), base.log_perplexity)
        rows.append(Row(_cells(name, own, *cells, Cell(f"{per_byte:.3f}", per_byte), known.script, known.family), data))
    label = report.label if report is not None else str
    heads = ("language", *map(label, found), f"{bits}, bits/byte", "script", "family")
    note = "× is the multiple of the base's, by which its column sorts. • marks the languages that were scored."
    if report is not None and report.guessing() is not None:
        note += " ° is no better than a uniform guess."
    note += f" What may be chance has no colour. {tested.chance_words(others)}" if tested is not None else ""
    rows.sort(key=lambda row: int(row.data.get("script", 0)))
    foot = None if report is None else _means([report.summary[name] for name in found])
    return Grid("Perplexity", heads, rows, note, ("script", "family"), foot)


def _beside(perplexity: str, times: Cell, note: str = "") -> Cell:
    return replace(times, text=f"×{times.text}", before=perplexity, note=note)


def _means(items: Sequence[Summary]) -> list[Cell]:
    cells = [_beside(number(item.geometric_mean_perplexity), _times(item.ratio_to_base)) for item in items[1:]]
    return _cells("geometric mean", _summed(items[0])[0], *cells, "", "", "")


def measurement_tables(report: Report, kind: str, variants: Sequence[str]) -> list[Grid]:
    """Show a measurement, a table per quantity: a row per group, the base's value, and beside it each variant's."""
    item = report.measurements[kind]
    shown = [name for name in ("base", *variants) if name in item.found]
    grids: list[Grid] = []
    for quantity in item.quantities:
        rows = []
        for group in dict.fromkeys(group for name in shown for group in item.found[name]):
            name = report.language(group).name if item.by == "language" else group
            cells = [_measured(quantity, item.found[model].get(group, {}).get(quantity.name)) for model in shown]
            if quantity is item.quantities[0]:
                cells = [
                    _remarked(cell, item.remarks.get(model, {}).get(group))
                    for model, cell in zip(shown, cells, strict=True)
                ]
            rows.append(Row(_cells(name, *cells)))
        means = [_measured(quantity, item.overall[model].get(quantity.name)) for model in shown if item.overall]
        chance = "" if quantity.chance is None else f" By chance {quantity_text(quantity, quantity.chance)}."
        note = f"{'More' if quantity.worse == 'more' else 'Less'} is worse.{chance}"
        note += "" if quantity.compare == "base" else " In brackets the change from the base; * is more than chance."
        note += "" if grids else f" {item.chance_words(variants)}".rstrip()
        grids.append(
            Grid(_titled(quantity), (item.by, *shown), rows, note, foot=_cells("mean", *means) if means else None)
        )
    return grids


def _titled(quantity: Quantity) -> str:
    title = quantity.title + (f", {quantity.unit}" if quantity.unit else "")
    return title[:1].upper() + title[1:]


def summary_table(report: Report) -> Grid:
    """Show every measurement but perplexity over all groups: a row per variant, a column per quantity."""
    told = [(kind, quantity) for kind, item in report.measurements.items() if kind != "perplexity" and item.overall
            for quantity in item.quantities]  # fmt: skip
    names = dict.fromkeys(name for kind, _ in told for name in report.measurements[kind].overall)
    rows = []
    for name in names:
        figures = [
            (quantity, report.measurements[kind].overall.get(name, {}).get(quantity.name)) for kind, quantity in told
        ]
        rows.append(Row(_cells(name, *(_measured(quantity, figure) for quantity, figure in figures))))
    heads = [_titled(quantity) for _, quantity in told]
    note = "Means over all languages or tasks; in brackets the change from the base."
    return Grid("Other measurements", ("variant", *heads), rows, note)


def _measured(quantity: Quantity, figure: Figure | None) -> Cell:
    """Show a value, and in brackets its interval or the change's."""
    if figure is None:
        return Cell("-")
    said = quantity_text(quantity, figure.value)
    if figure.change is not None:
        said += f" ({quantity_text(quantity, figure.change, change=True)}){'*' if figure.beyond_chance else ''}"
    bounds = [] if figure.low is None or figure.high is None else [figure.low, figure.high]
    note = " to ".join(quantity_text(quantity, bound, change=figure.change is not None) for bound in bounds)
    return Cell(said, _order(figure.value), note=f"interval {note}" if note else "")


def _remarked(cell: Cell, remark: str | None) -> Cell:
    return cell if remark is None else replace(cell, text=f"{cell.text}; {remark}")


def sweep_table(report: Report, name: str) -> Grid:
    """Show a sweep: a line per point with its value on every axis and what became of the perplexity; then the base."""
    sweep, points = report.sweeps[name], list(report.sweeps[name].points.items())
    rows = []
    for i, (point, values) in enumerate(points):
        axes = [Cell(coordinate(value), value if is_number(value) else None) for value in values]
        cells = _cells(*axes, report.variants[point].entries, *_summed(report.summary.get(point)), point)
        rows.append(Row(cells, ends=i + 1 < len(points) and len(values) > 1 and points[i + 1][1][0] != values[0]))
    heads = (*sweep.axes, "entries", "perplexity", TIMES, INTERVAL, "variant")
    foot = _cells("base", *[""] * len(sweep.axes), _summed(report.summary.get("base"))[0], "", "", "")
    note = "Perplexity is the geometric mean over the languages; × is the multiple of the base's."
    words = {axis for axis, values in sweep.axes.items() if not all(map(is_number, values))}
    return Grid(f"Sweep {name}", heads, rows, note, {*words, "variant"}, foot)


def regions_table(regions: Mapping[str, RegionReport]) -> Grid:
    """Show the regions: entries, density, where entries crowd most, and how they were selected."""
    heads = ("region", "entries", "of", "share", "fullest 1 % of lines hold", "tensors", "selected by")
    rows = [
        Row(_cells(name, item.entries, item.numel, item.fraction, _crowding(item), item.tensors, item.origin))
        for name, item in regions.items()
    ]
    return Grid("Regions", heads, rows, "The share is of the entries in scope.", (heads[4], "selected by"))


def _crowding(region: RegionReport) -> str:
    """Name the role whose entries crowd most into few rows or columns, and the share they hold; by chance, too."""
    if not region.spreads:
        return "-"
    at = region.spread_at.index(0.01)
    lines = [(getattr(s, axis)[at], role, axis) for role, s in region.spreads.items() for axis in ("rows", "columns")]
    share, role, axis = max(lines)
    told = f"{role} {axis} {percent(share)}"
    chance = region.chance.get(role)
    return told if chance is None else f"{told} (chance {percent(getattr(chance, axis)[at])})"


def role_counts(region: RegionReport) -> dict[str, dict[str, Any]]:
    """Return by role the entries, of how many, and the share of them in the fullest hundredth of rows and columns."""
    at = region.spread_at.index(0.01) if region.spread_at else 0
    found = {}
    for role in roles_in_order(region.roles):
        counted, spread = region.roles[role], region.spreads.get(role)
        rows, columns = (None, None) if spread is None else (spread.rows[at], spread.columns[at])
        found[role] = {**counted.model_dump(), "in_fullest_rows": rows, "in_fullest_columns": columns}
    return found


def roles_table(roles: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Show the `role_counts` of a region."""
    rows = []
    for role, found in roles.items():
        share = found["entries"] / found["numel"] if found["numel"] else None
        lines = found["in_fullest_rows"], found["in_fullest_columns"]
        rows.append(Row(_cells(role, found["entries"], found["numel"], share, *lines)))
    return Grid("Roles", ("role", "entries", "of", "share", "in 1 % rows", "in 1 % columns"), rows)


def dimensions_table(region: RegionReport) -> Grid:
    """Show the residual dimensions that hold most entries."""
    heads = ("dimension", "entries", "of", "share", "stands out in tensors")
    rows = [
        Row(_cells(Cell(str(item.index), item.index), item.hits, item.slots, item.hits / item.slots, item.tensors))
        for item in region.dimensions
    ]
    return Grid("Residual dimensions", heads, rows, f"Those of {region.hidden_size or 0:,} that hold most entries.")


def scores_table(report: Report) -> Grid:
    """Show the text that importance was scored on."""
    rows = [
        Row(_cells(report.language(item.language).name, item.kind, item.sequences, item.tokens))
        for item in report.scores
    ]
    heads = ("language", "score", "sequences", "tokens")
    return Grid("Text that importance was scored on", heads, rows, words=("score",))
