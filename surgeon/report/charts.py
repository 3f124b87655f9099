"""What every chart is made of, as pieces of Vega-Lite: channels, marks, axes, and the colours of maps.

Colours in a specification are variables, such as `var(--ink)`: on a page they follow the reader's light or dark
setting, in a file they are filled in for one of the two.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Spec: TypeAlias = dict[str, Any]  # a piece of Vega-Lite
# Name, on light ground, on dark ground. Text and marks keep a contrast of 4.5 to the ground in both.
PALETTE = {
    "ground": ("#ffffff", "#12161c"), "raised": ("#f4f6f9", "#1a2028"), "line": ("#d9dee6", "#333c49"),
    "ink": ("#1d2430", "#e6eaf0"), "quiet": ("#5b6675", "#9aa7b8"), "link": ("#0b5fa5", "#6cb6ff"),
    "good": ("#17693a", "#6fd08c"), "bad": ("#b3261e", "#ff8a80"), "warm": ("#8a5a00", "#e3b341"),
    "series-0": ("#c2410c", "#ff9e64"), "series-1": ("#0b6bcb", "#6cb6ff"), "series-2": ("#17693a", "#6fd08c"),
    "series-3": ("#8b3fc7", "#d2a8ff"), "series-4": ("#8a5a00", "#e3b341"), "series-5": ("#0f6a63", "#5eead4"),
    "series-6": ("#be185d", "#f9a8d4"), "series-7": ("#44546a", "#b6c2d1"),
    "cool-3": ("#0b5fa5", "#6cb6ff"), "cool-2": ("#5c9ed0", "#2f628f"), "cool-1": ("#b5d5ee", "#234764"),
    "none": ("#e6e9ee", "#2a313b"),
    "heat-1": ("#fde4cf", "#3d2619"), "heat-2": ("#fbc495", "#5a3420"), "heat-3": ("#f59d5c", "#7b4120"),
    "heat-4": ("#dd6b2c", "#9c4f1f"), "heat-5": ("#b9430f", "#f08c4b"), "heat-6": ("#8c2408", "#ffb784"),
    "heat-7": ("#5c1206", "#ffe0c7"), "lost": ("#3d4450", "#aab4c2"),
}  # fmt: skip
HEAT = [f"heat-{i}" for i in range(1, 8)]
COOL = ["cool-3", "cool-2", "cool-1"]
# Fields of colour that carry text in the ground's colour, in the light and in the dark.
STRONG = ("cool-3", "heat-5", "heat-6", "heat-7", "lost")
SERIES = [f"series-{i}" for i in range(8)]
SHAPES = ["circle", "diamond", "square", "triangle-up", "triangle-down", "cross", "triangle-right", "triangle-left"]
FONT = "Arial, sans-serif"  # its widths are those of the font that the renderer brings along
# Ticks of a logarithmic axis of multiples that have a label: all of them in less than a decade, those that begin with
# 1, 2 and 5 in few, else the powers of ten, which then are all that has a line.
SPAN = "domain('AXIS')[1] / domain('AXIS')[0]"
BEGINS = "slice(format(datum.value, 'e'), 0, 1)"
LABELLED = f"({SPAN} < 6 || indexof({SPAN} < 1e4 ? ['1', '2', '5'] : ['1'], {BEGINS}) >= 0)"
TIMES = f"{LABELLED} ? '×' + format(datum.value, datum.value < 1e5 ? ',~g' : '~e') : ''"
LINED = f"{SPAN} < 1e4 || {BEGINS} == '1'"
_CLOSER = 0.1  # how much of a distance is left beyond guessing
MOST = 25.0  # nats per token beyond which a model is merely broken
LOST = "no better than guessing"
# What is broken says so at the edge of an axis.
BROKEN: Spec = {
    "transform": [{"filter": "datum.broken != ''"}],
    "mark": {"type": "text", "align": "right", "dx": -8, "fontSize": 11},
    "encoding": {"text": {"field": "broken", "type": "nominal"}},
}


def colour(name: str) -> str:
    """Return a colour of the palette as a variable."""
    return f"var(--{name})"


def words(field: str, **more: Any) -> Spec:
    """Return a channel of names."""
    return {"field": field, "type": "nominal", **more}


def amount(field: str, **more: Any) -> Spec:
    """Return a channel of numbers."""
    return {"field": field, "type": "quantitative", **more}


def layer(kind: str, look: Spec, only: str = "", **channels: Any) -> Spec:
    """Return marks of a kind with their look, in the rows of which `only` holds."""
    chosen = {"transform": [{"filter": only}]} if only else {}
    return {"mark": {"type": kind, **look}, **chosen, "encoding": channels}


def rule_at(axis: str, value: float, **look: Any) -> Spec:
    """Return a line at one value of an axis."""
    return {"data": {"values": [{}]}, "mark": {"type": "rule", **look}, "encoding": {axis: {"datum": value}}}


def the_base(axis: str) -> Spec:
    """Return the line at the base's perplexity."""
    return rule_at(axis, 1, strokeWidth=1.2, color=colour("ink"))


def dashed_at(axis: str, value: float) -> Spec:
    """Return the line of what a model reaches that guesses."""
    return rule_at(axis, value, strokeDash=[5, 4], color=colour("quiet"))


def hue_and_shape(
    field: str, names: Sequence[str], legend: Spec | None, looks: Sequence[tuple[str, str]] | None = None, **more: Any
) -> tuple[Spec, Spec]:
    """Return the channels of colour and shape, which tell names apart; `looks` are theirs, or else the first ones."""
    kinds = looks or [(SERIES[i % len(SERIES)], SHAPES[i % len(SHAPES)]) for i in range(len(names))]
    hues, shapes = [colour(hue) for hue, _ in kinds], [shape for _, shape in kinds]
    hue, shape = (
        words(field, legend=legend, scale={"domain": list(names), "range": values}, **more) for values in (hues, shapes)
    )
    return hue, shape


def dots(size: int, hover: list[Spec], hue: Spec, shape: Spec, opacity: float = 1) -> Spec:
    """Return a mark for each value, which says more when pointed at."""
    look = {"filled": True, "size": size, "opacity": opacity}
    return layer("point", look, tooltip=hover, color=hue, shape=shape)


def intervals(axis: str, hue: Spec) -> Spec:
    """Return a bar along an axis for each interval, `low` to `high`, where there is one."""
    ends = {axis: amount("low"), f"{axis}2": {"field": "high"}}
    return layer("rule", {"strokeWidth": 5, "opacity": 0.35}, "isValid(datum.low)", **ends, color=hue)


def multiples(across: bool, title: str, **axis: Any) -> Spec:
    """Return a logarithmic axis of multiples of the base's, across or up."""
    labels, lined = (test.replace("AXIS", "x" if across else "y") for test in (TIMES, LINED))
    scale = {"type": "log", "nice": False, "padding": 8}
    lines = {"grid": True, "gridOpacity": {"condition": {"test": lined, "value": 1}, "value": 0}}
    return amount("ratio", title=title, scale=scale, axis={"labelExpr": labels, **lines, **axis})


def named(field: str, sort: Any) -> Spec:
    """Return an axis down the page of names alone, without a line or ticks."""
    return words(field, title=None, sort=sort, axis={"domain": False, "ticks": False, "labelPadding": 6})


def tips(**said: str) -> list[Spec]:
    """Return what pointing at a mark says: by field, its title."""
    return [words(field, title=title) for field, title in said.items()]


def is_drawable(log: float) -> bool:
    """True for the logarithm of a ratio that has a place on an axis; beyond it a model is merely broken."""
    return math.isfinite(log) and abs(log) <= MOST


def closer(log: float, guess: float | None) -> float:
    """Return the logarithm at which a ratio is drawn: what lies beyond guessing is drawn closer together."""
    return log if guess is None or not log > guess or guess <= 0 else guess + (log - guess) * _CLOSER


def drawn_ratios(logs: Iterable[float]) -> Callable[[float], float]:
    """Return where ratios of these logarithms are drawn: in their place, or what is broken at the edge."""
    edge = max([math.log(2), *(log for log in logs if is_drawable(log))]) * 1.08
    return lambda log: math.exp(log if is_drawable(log) else edge)


def finished(spec: Spec) -> Spec:
    """Return a specification in the common look."""
    text = {"labelColor": colour("ink"), "titleColor": colour("quiet"), "labelFontSize": 12, "titleFontSize": 12}
    look = {
        "aria": False, "background": "transparent", "font": FONT, "padding": 4,
        "view": {"stroke": None},
        "text": {"color": colour("ink")}, "rule": {"color": colour("quiet")},
        "axis": {
            **text, "titleFontWeight": "normal", "gridColor": colour("line"), "domainColor": colour("line"),
            "tickColor": colour("line"), "labelLimit": 220, "titleLimit": 500,
        },
        "legend": {
            **text, "titleFontWeight": "normal", "orient": "top", "direction": "horizontal", "columns": 4,
            "labelLimit": 260, "symbolSize": 90, "titleAnchor": "start", "titleLimit": 500,
        },
        "title": {"color": colour("ink"), "fontSize": 13, "anchor": "start"},
        "header": {**text, "titleFontWeight": "normal", "labelFontWeight": "bold"},
    }  # fmt: skip
    return {**spec, "config": look}


@dataclass(frozen=True)
class Ramp:
    """Colours for the steps of a value: one below the first of `ends`, one from each on; `lowest` names the first."""

    title: str
    ends: tuple[float, ...]
    colours: tuple[str, ...]
    lowest: str
    sign: str = ""

    def of(self, value: float, lost: bool = False) -> dict[str, Any]:
        """Return a value's step, and whether text on its colour takes the ground's; not a number is the last.

        A model that guesses no better than uniformly is `lost`, whatever the value.
        """
        if lost:
            return {"step": LOST, "strong": True}
        step = len(self.ends) if math.isnan(value) else bisect(self.ends, value)
        return {"step": self.labels[step], "strong": self.colours[step] in STRONG}

    @property
    def labels(self) -> list[str]:
        """The steps in words."""
        between = [f"{self.sign}{low:g} to {high:g}" for low, high in itertools.pairwise(self.ends)]
        return [self.lowest, *between, f"{self.sign}{self.ends[-1]:g} and more"]

    def channel(self, rows: Sequence[Mapping[str, Any]]) -> Spec:
        """Return the channel of colour; its legend has the steps that occur."""
        steps_drawn = {row["step"] for row in rows}
        steps = [*zip(self.labels, self.colours, strict=True), (LOST, "lost")]
        used = {label: colour(name) for label, name in steps if label in steps_drawn}
        legend = {
            "title": self.title, "orient": "bottom", "columns": 2,
            "symbolType": "square", "symbolSize": 130, "symbolStrokeWidth": 0,
        }  # fmt: skip
        return words("step", scale={"domain": list(used), "range": list(used.values())}, legend=legend)


# Grey is what lies within 1 % of the base, or of chance.
RATIOS = Ramp(
    "times the base's perplexity", (0.5, 0.8, 0.99, 1.01, 1.05, 1.2, 2, 10, 100, 1000), (*COOL, "none", *HEAT),
    "under ×0.5", "×",
)  # fmt: skip
JACCARD = Ramp("Jaccard index", (0.01, 0.05, 0.1, 0.2, 0.3, 0.5), ("none", *HEAT[:6]), "by chance")
CROWDING = Ramp("per cent of the entries", (3, 5, 10, 20, 40, 70), ("none", *HEAT[:6]), "under 3")


def heads(field: str, names: Sequence[str], level: bool = False, **more: Any) -> Spec:
    """Return an axis of names above a map."""
    angle = 0 if level else -40
    axis = {"orient": "top", "labelAngle": angle, "domain": False, "ticks": False, "labelLimit": 160, **more}
    return words(field, sort=list(names), title=None, axis=axis)


def cells(rows: Sequence[Mapping[str, Any]], ramp: Ramp, hover: list[Spec], are_said: bool) -> list[Spec]:
    """Return a map's layers: fields in the colour of their level, and in them what is `said`."""
    look = {"stroke": colour("ground"), "strokeWidth": 1}
    ink = {"condition": {"test": "datum.strong", "value": colour("ground")}, "value": colour("ink")}
    fields = [layer("rect", look, color=ramp.channel(rows), tooltip=hover)]
    return [*fields, layer("text", {"fontSize": 11}, text=words("said"), color=ink)] if are_said else fields


def colour_map(rows: list[dict[str, Any]], axes: tuple[Spec, Spec], steps: tuple[int, int], layers: list[Spec]) -> Spec:
    """Return a map of `cells`: its axes across and down, and how wide and high a cell is."""
    across, down = axes
    return {
        "data": {"values": rows}, "width": {"step": steps[0]}, "height": {"step": steps[1]},
        "encoding": {"x": across, "y": down}, "layer": layers,
    }  # fmt: skip
