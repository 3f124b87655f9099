"""The tables of measurements other than perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from surgeon.model.results import Quantity
from surgeon.report.data import Report
from surgeon.report.grid import Cell, Grid, Row, as_cells, order_of
from surgeon.report.measured_entries import MeasurementReport
from surgeon.report.words import quantity_interval, quantity_text


def measurement_tables(report: Report, kind: str, variants: Sequence[str]) -> list[Grid]:
    """Show a measurement, a table per quantity: a row per group, the base's value, and beside it each variant's."""
    item = report.measurements[kind]
    shown = [name for name in ("base", *variants) if name in item.found]
    grids: list[Grid] = []
    for quantity in item.quantities:
        rows = []
        for group in dict.fromkeys(group for name in shown for group in item.found[name]):
            name = report.language(group).name if item.by == "language" else group
            cells = [_cell(report, item, quantity, model, group) for model in shown]
            if quantity is item.quantities[0]:
                cells = [
                    _remarked(cell, item.remarks.get(model, {}).get(group))
                    for model, cell in zip(shown, cells, strict=True)
                ]
            rows.append(Row(as_cells(name, *cells)))
        means = [_cell(report, item, quantity, model, None) for model in shown if item.overall]
        chance = "" if quantity.chance is None else f" By chance {quantity_text(quantity, quantity.chance)}."
        note = f"{'More' if quantity.worse == 'more' else 'Less'} is worse.{chance}"
        note += "" if quantity.compare == "base" else " In brackets the change from the base; * is more than chance."
        note += "" if grids else f" {item.chance_words({name: report.named(name) for name in variants})}".rstrip()
        heads = (item.by, *map(report.label, shown))
        grids.append(Grid(_titled(quantity), heads, rows, note, foot=as_cells("mean", *means) if means else None))
    return grids


def _titled(quantity: Quantity) -> str:
    title = quantity.title + (f", {quantity.unit}" if quantity.unit not in ("", quantity.title) else "")
    return title[:1].upper() + title[1:]


def summary_table(report: Report) -> Grid:
    """Show every measurement but perplexity over all groups: a row per variant, a column per quantity."""
    told = [(kind, quantity) for kind, item in report.measurements.items() if kind != "perplexity" and item.overall
            for quantity in item.quantities]  # fmt: skip
    measured = dict.fromkeys(name for kind, _ in told for name in report.measurements[kind].overall)
    draws = {draw for name in report.measured_alone for draw in report.draws(name)}
    names = [name for name in measured if name in report.measured_alone or name not in draws]
    rows = []
    for name in names:
        cells = [_cell(report, report.measurements[kind], quantity, name, None) for kind, quantity in told]
        rows.append(Row(as_cells(report.label(name), *cells)))
    heads = [_titled(quantity) for _, quantity in told]
    note = "Means over all languages or tasks; in brackets the change from the base."
    return Grid("Other measurements", ("variant", *heads), rows, note)


def _cell(report: Report, item: MeasurementReport, quantity: Quantity, model: str, group: str | None) -> Cell:
    """Show a value of a group, or the mean of all, and in brackets its change; bounds stand in the note."""
    draws = report.draws(model)
    figure = item.averaged(draws, group, quantity.name)
    if figure is None:
        return Cell("-")
    said = quantity_text(quantity, figure.value)
    if figure.change is not None:
        said += f" ({quantity_text(quantity, figure.change, change=True)}){'*' if figure.beyond_chance else ''}"
    if figure.low is None or figure.high is None:
        return Cell(said, order_of(figure.value))
    bounds = quantity_interval(quantity, figure.low, figure.high, figure.change is not None)
    return Cell(said, order_of(figure.value), note=f"{'range' if len(draws) > 1 else 'interval'} {bounds}")


def _remarked(cell: Cell, remark: str | None) -> Cell:
    return cell if remark is None else replace(cell, text=f"{cell.text}; {remark}")
