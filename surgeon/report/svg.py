"""Drawing: a few shapes as SVG text, and the two charts that everything else is made of.

Colours are CSS classes, so that one drawing serves light and dark on a page; `figures.css` defines them. A figure
that is saved as a file carries its colours along, on a white ground: it is to look the same wherever it is shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("figures.css")
WIDTH = 560.0
MARGIN, HEADING = 16.0, 44.0  # around a figure that is a file of its own, and above it
OVERFLOW = 25.0  # nats per token beyond which a model is merely broken; drawn at the edge
COLOURS = 8  # series that figures.css knows
CHARACTER = 9.0  # width of a letter at the size that a page gives them on a phone, on the safe side


@dataclass(frozen=True)
class Figure:
    """A drawing. `name` is its file's stem, `title` and `description` say in words what it shows."""

    name: str
    title: str
    description: str
    height: float
    body: str

    def inline(self) -> str:
        """Return the drawing as an element of a page."""
        return (
            f'<svg class="figure" viewBox="0 0 {WIDTH:g} {self.height:g}" role="img" '
            f'aria-labelledby="{self.name}-title {self.name}-description" xmlns="http://www.w3.org/2000/svg">'
            f'<title id="{self.name}-title">{escape(self.title)}</title>'
            f'<desc id="{self.name}-description">{escape(self.description)}</desc>{self.body}</svg>'
        )

    def standalone(self) -> str:
        """Return the drawing as a file of its own: titled, on a white ground, in plain CSS that any renderer reads."""
        width, height = WIDTH + 2 * MARGIN, self.height + HEADING + MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="title description">'
            f'<title id="title">{escape(self.title)}</title>'
            f'<desc id="description">{escape(self.description)}</desc><style>{_plain_style()}</style>'
            f'<rect class="ground" width="{width:g}" height="{height:g}"/>{text(MARGIN, 26, self.title, kind="title")}'
            f'<g transform="translate({MARGIN:g} {HEADING:g})">{self.body}</g></svg>\n'
        )

    def _repr_svg_(self) -> str:
        """Show the drawing in a notebook."""
        return self.standalone()


def _plain_style() -> str:
    """Return the style in its light colours, without variables, which renderers other than browsers do not know."""
    style = STYLE.read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", style.partition("@media")[0]))
    rules = style[style.index("svg.figure text") :]
    return re.sub(r"var\((--\w+)\)", lambda found: colours[found[1]], rules)


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers to mark on a logarithmic scale; `low` and `high` are natural logarithms."""
    steps: tuple[float, ...] = (1, 2, 5) if high - low > 2.5 else (1, 1.5, 2, 3, 5, 7)
    if high - low > 8:
        steps = (1,)
    decades = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [tick for tick in ticks if low <= math.log(tick) <= high]


def gutter(labels: Iterable[str]) -> float:
    """Return the room that labels need to the left of a chart."""
    return 12 + CHARACTER * max(len(label) for label in labels)


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """Return a line of text; `anchor` is start, middle or end."""
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{chosen}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def box(x: float, y: float, width: float, height: float, kind: str, tip: str = "", opacity: float = 1.0) -> str:
    """Return a rectangle; `tip` is shown when pointed at."""
    fill = f' fill-opacity="{opacity:.3f}"' if opacity < 1 else ""
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{kind}"{fill}>{inner}</rect>'


def marker(x: float, y: float, series: int, tip: str) -> str:
    """Return the marker of a series; shapes differ as well as colours, for those who see few colours.

    The first series, the base, has its colour for itself.
    """
    r = 4.6
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" ',
        f'<path d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z" ',
        f'<rect x="{x - r + 0.6:.1f}" y="{y - r + 0.6:.1f}" width="{2 * r - 1.2}" height="{2 * r - 1.2}" ',
        f'<path d="M{x:.1f} {y - r - 0.6:.1f}l{r + 0.8} {2 * r}h{-2 * r - 1.6}z" ',
    )
    closing = {0: "circle", 2: "rect"}.get(series % 4, "path")
    colour = 1 + (series - 1) % (COLOURS - 1) if series else 0
    return f'{shapes[series % 4]}class="series{colour}"><title>{escape(tip)}</title></{closing}>'


def legend(names: Sequence[str], y: float, first: float = 0.0, series: int = 0) -> tuple[str, float]:
    """Return a legend of series, counted from `series`, in as many lines as it takes, and the height used."""
    parts, x, top = [], first, y
    for i, name in enumerate(names):
        width = 20 + CHARACTER * len(name) + 12
        if x + width > WIDTH and x > first:
            x, y = first, y + 20
        parts += [marker(x + 7, y + 10, series + i, name), text(x + 18, y + 14.5, name)]
        x += width
    return "".join(parts), y + 24 - top


@dataclass(frozen=True)
class HeatCell:
    """One cell: `level` from 0 to 1 sets its colour, `hue` which one; `label` stands in it if there is room."""

    level: float
    label: str
    tip: str
    hue: str = "heat"


def heatmap(
    name: str,
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[HeatCell | None]],
    axis: str,
) -> Figure:
    """Draw a table of coloured cells; `axis` names the columns, a cell that is None stays empty."""
    left, high = gutter(rows), 24.0
    longest = max(len(column) for column in columns)
    wide = min(96.0, (WIDTH - left) / len(columns))
    slanted = longest > 3 and CHARACTER * longest > wide
    if slanted:  # the last label leans out to the right
        wide = min(96.0, (WIDTH - left - 4.0 * len(columns[-1])) / len(columns))
    top = 40.0 + (6.2 * longest if slanted else 0)
    every = 1 if slanted else max(1, math.ceil(len(columns) * 26 / (WIDTH - left)))
    parts = [text(left, 13, axis, kind="quiet")]
    for j, column in enumerate(columns):
        x = left + (j + 0.5) * wide
        if slanted:
            parts.append(f'<g transform="translate({x:.1f} {top - 6:.1f}) rotate(-55)">{text(0, 0, column)}</g>')
        elif j % every == 0:
            parts.append(text(x, top - 6, column, "middle"))
    for i, row in enumerate(rows):
        y = top + i * high
        parts.append(text(left - 8, y + high / 2 + 4.5, row, "end"))
        for j, cell in enumerate(cells[i]):
            if cell is not None:
                parts += _heat_cell(cell, left + j * wide, y, wide, high)
    return Figure(name, title, description, top + len(rows) * high + 4, "".join(parts))


def _heat_cell(cell: HeatCell, x: float, y: float, wide: float, high: float) -> list[str]:
    level = min(max(cell.level, 0.0), 1.0)
    gap = 1.0 if wide > 6 else 0.2
    parts = [box(x, y, wide - gap, high - gap, cell.hue, cell.tip, 0.06 + 0.94 * level if level < 1 else 1.0)]
    if len(cell.label) * 6.4 <= wide - 4:
        kind = "inside strong" if level > 0.55 else "inside"
        parts.append(text(x + wide / 2, y + high / 2 + 4, cell.label, "middle", kind))
    return parts


@dataclass(frozen=True)
class Bar:
    """One bar of a group: its length from 0 to 1, the series that colours it, and what stands behind it."""

    length: float
    series: int
    label: str


def bars(
    name: str, title: str, description: str, groups: Sequence[tuple[str, Sequence[Bar]]], mark: tuple[float, str]
) -> Figure:
    """Draw horizontal bars in labelled groups, with a line at `mark` (a length, and what it means)."""
    left = gutter(label for label, _ in groups)
    room = WIDTH - left - 12 - CHARACTER * max(len(bar.label) for _, group in groups for bar in group)
    thick = 16.0
    y = 26.0
    parts = []
    for label, group in groups:
        parts.append(text(left - 8, y + thick * len(group) / 2 + 4.5, label, "end"))
        for bar in group:
            parts.append(box(left, y + 1, bar.length * room, thick - 2, f"series{bar.series}", f"{label}: {bar.label}"))
            parts.append(text(left + bar.length * room + 7, y + thick - 3, bar.label, kind="small"))
            y += thick
        y += 6
    at = left + mark[0] * room
    parts.append(line(at, 20, at, y - 4, "mark"))
    near_end = at + CHARACTER * len(mark[1]) > WIDTH
    parts.append(text(at, 14, mark[1], "end" if near_end else "start", "quiet"))
    return Figure(name, title, description, y, "".join(parts))
