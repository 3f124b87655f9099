"""What a table is: cells in rows under heads, once for the terminal, the page and the cards."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from surgeon.report.words import SAME, number, percent


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

    def columns(self, *numbers: int) -> Grid:
        """Return some columns, in the order asked for, and the rows that have something there."""
        rows = [replace(row, cells=[row.cells[i] for i in numbers]) for row in self.rows]
        rows = [row for row in rows if any(cell.text for cell in row.cells[1:])]
        heads, foot = tuple(self.heads[i] for i in numbers), self.foot and [self.foot[i] for i in numbers]
        return replace(self, heads=heads, rows=rows, foot=foot)


Value: TypeAlias = "Cell | str | int | float | None"


def as_cells(*values: Value) -> list[Cell]:
    """Turn values into cells: whole numbers are counts, others shares, None is a dash."""
    return [value if isinstance(value, Cell) else _cell(value) for value in values]


def _cell(value: str | int | float | None) -> Cell:
    if value is None or isinstance(value, str):
        return Cell("-" if value is None else value)
    return Cell(f"{value:,}" if isinstance(value, int) else percent(value), value)


def times_cell(ratio: float, log: float = 0.0) -> Cell:
    """Say a multiple of the base's; a column of them is sorted by their logarithms, what is broken last."""
    return Cell(number(ratio), order_of(log), ratio=ratio)


def order_of(log: float) -> float:
    """Return what a column of logarithms sorts by: what is broken is last."""
    return round(log, 6) if math.isfinite(log) else 1e9
