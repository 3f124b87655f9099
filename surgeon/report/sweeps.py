"""The figure of a sweep: perplexity as a multiple of the base's, over an axis of numbers or in bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from surgeon.model.results import exponential
from surgeon.report.charts import (
    BROKEN,
    RATIOS,
    Spec,
    amount,
    cells,
    colour_map,
    dashed_at,
    dots,
    drawn_ratios,
    finished,
    heads,
    hue_and_shape,
    intervals,
    is_drawable,
    layer,
    multiples,
    the_base,
    tips,
    words,
)
from surgeon.report.data import Report
from surgeon.report.drawing import Figure
from surgeon.report.entries import SweepReport
from surgeon.report.words import coordinate, is_lost, is_number, number

_MOST_LINES = 6  # that one chart can hold; more become a map


def sweep_figure(report: Report, name: str) -> Figure:
    """Draw a sweep: lines over its first axis of numbers, a line per value of the other axes; bars if there is none."""
    sweep, base = report.sweeps[name], report.summary["base"].log_geometric_mean_perplexity
    logs = {point: report.summary[point].log_geometric_mean_perplexity - base for point in sweep.points}
    across_and_down = _axes_of_a_map(sweep)
    if across_and_down is not None:
        return _map(report, name, logs, *across_and_down)
    axis = next((axis for axis, values in sweep.axes.items() if len(values) > 1 and all(map(is_number, values))), None)
    along = axis or next(iter(sweep.axes))
    rows = _rows(name, sweep.points, list(sweep.axes).index(along), logs)
    for row in rows:
        item = report.summary[row["point"]]
        if item.low is not None and item.high is not None and math.isfinite(item.low) and math.isfinite(item.high):
            row |= {"low": item.low, "high": item.high, "interval": f"×{number(item.low)} to ×{number(item.high)}"}
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    hue, shape = hue_and_shape("kind", kinds, None if len(kinds) == 1 else {"symbolOpacity": 1}, title=None)
    interval = {"interval": "interval"} if any("low" in row for row in rows) else {}
    hover = tips(point="point", along=along, kind="of", times="of the base's perplexity", **interval)
    values = sweep.axes[along]
    drawn = _lines(values, along, hue, shape, hover) if axis is not None else _bars(values, along, hue, hover)
    worst = max(logs, key=lambda point: math.inf if math.isnan(logs[point]) else logs[point])
    others = [other for other in sweep.axes if other != along]
    caption = (
        f"Perplexity by {' and '.join([along, *others])}: geometric mean over the languages at {len(rows)} points, as "
        "a multiple of the base's (the line at ×1), on a logarithmic scale. "
        f"Most at {report.named(worst)}: ×{number(exponential(logs[worst]))}."
    )
    caption += " Bars are intervals." if interval and axis is not None else ""
    guess = report.guessing()
    if guess is not None and any(is_lost(log, guess) for log in logs.values()):
        drawn["layer"].insert(0, dashed_at("y" if axis is not None else "x", math.exp(guess)))
        caption += " Beyond the dashed line a model is no better than a uniform guess."
    caption += _steepest(rows) if axis is not None and axis != "seed" else ""
    spec = finished({"data": {"values": rows}, **drawn})
    return Figure(f"sweep-{name}", f"What {name} does, by {along}", caption, spec, True, True)


def _axes_of_a_map(sweep: SweepReport) -> tuple[str, str] | None:
    """Return the axes across and down if a sweep is a grid of two: of numbers both, of names both, or of many names."""
    long = [axis for axis, values in sweep.axes.items() if len(values) > 1]
    if len(long) != 2 or "seed" in long:
        return None
    numbers = [all(map(is_number, sweep.axes[axis])) for axis in long]
    many = any(len(sweep.axes[axis]) > _MOST_LINES for axis, counted in zip(long, numbers, strict=True) if not counted)
    if numbers[0] != numbers[1] and not many:
        return None
    across = long[1] if numbers[1] or not numbers[0] else long[0]
    return across, next(axis for axis in long if axis != across)


def _map(report: Report, name: str, logs: Mapping[str, float], across: str, down: str) -> Figure:
    """Draw a sweep over two axes as a map: each cell the multiple of the base's perplexity."""
    sweep, guess, rows = report.sweeps[name], report.guessing(), []
    x, y = (list(sweep.axes).index(axis) for axis in (across, down))
    for point, values in sweep.points.items():
        times = exponential(logs[point])
        rows.append({
            "point": point, "across": coordinate(values[x]), "down": coordinate(values[y]),
            "said": number(times), "times": f"×{number(times)}", **RATIOS.of(times, is_lost(logs[point], guess)),
        })  # fmt: skip
    columns, lines = (list(map(coordinate, sweep.axes[axis])) for axis in (across, down))
    hover = tips(across=across, down=down, times="of the base's perplexity", point="variant")
    narrow = len(columns) > 16
    level = all(len(column) < 8 for column in columns) and not narrow
    axes = {**heads("across", columns, level), "title": across}, _down("down", lines, down)
    spec = colour_map(rows, axes, (22 if narrow else 52, 24), cells(rows, RATIOS, hover, not narrow))
    caption = (
        f"Perplexity by {down} (down) and {across} (across): geometric mean over the languages, as a multiple of the "
        "base's. The warmer the worse; grey is within 1 % of the base."
    )
    return Figure(f"sweep-{name}", f"What {name} does, by {down} and {across}", caption, finished(spec), key=True)


def _steepest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say of the line that rises most where it does: one large step, or a slope in many.

    A rise is one of logarithms, between neighbours on the axis; of fewer than four points nothing is said.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if not row["broken"]:
            lines.setdefault(row["kind"], []).append((row["x"], math.log(row["ratio"])))
    told = {kind: sorted(line) for kind, line in lines.items() if len(line) > 3}
    rises = {kind: max(y for _, y in line) - line[0][1] for kind, line in told.items()}
    kind = max(rises, key=lambda kind: rises[kind], default=None)
    if kind is None or rises[kind] < math.log(1.05):
        return ""
    step, low, high = max((b[1] - a[1], a[0], b[0]) for a, b in pairwise(told[kind]))
    share = min(step / rises[kind], 1.0)
    return f" Of the rise of {kind}, {100 * share:.0f} % comes between {low:g} and {high:g}."


def _rows(name: str, points: Mapping[str, Sequence[Any]], axis: int, logs: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return a row for each point; `axis` is the number of that along which they are drawn."""
    drawn, rows = drawn_ratios(logs.values()), []
    for point, values in points.items():
        at, rest, times = values[axis], [*values[:axis], *values[axis + 1 :]], number(exponential(logs[point]))
        rows.append({
            "point": point, "x": at if is_number(at) else coordinate(at), "along": coordinate(at),
            "kind": ", ".join(map(coordinate, rest)) or name, "ratio": drawn(logs[point]), "times": f"×{times}",
            "broken": "" if is_drawable(logs[point]) else f"×{times}",
        })  # fmt: skip
    return rows


def _lines(xs: Sequence[float], along: str, hue: Spec, shape: Spec, hover: list[Spec]) -> Spec:
    # Where values span more than a factor of 8, equal steps are equal factors.
    is_log = min(xs) > 0 and max(xs) / min(xs) > 8
    scale = {"type": "log"} if is_log else {"type": "linear", "zero": False}
    labels = {"values": sorted(set(xs)), "format": "~g", "grid": False, "labelOverlap": True}
    x = amount(
        "x", title=along + (", logarithmic" if is_log else ""), axis=labels,
        scale={**scale, "nice": False, "padding": 16},
    )  # fmt: skip
    line = layer("line", {"strokeWidth": 2}, color=hue, detail=words("kind"))
    layers = [
        *([] if along == "seed" else [line]),  # between two seeds there is nothing
        intervals("y", hue),
        dots(80, hover, hue, shape),
        BROKEN,
    ]
    encoding = {"x": x, "y": multiples(False, "times the base's perplexity")}
    return {"width": 520, "height": 300, "layer": [the_base("y"), {"encoding": encoding, "layer": layers}]}


def _down(field: str, names: Sequence[str], title: str) -> Spec:
    """Return an axis down the page of the values of one axis of a sweep."""
    return words(field, sort=names, title=title, axis={"domain": False, "ticks": False})


def _bars(values: Sequence[Any], along: str, hue: Spec, hover: list[Spec]) -> Spec:
    encoding = {
        "x": multiples(True, "times the base's perplexity"),
        "y": _down("along", list(map(coordinate, values)), along),
        "yOffset": words("kind"),
    }
    layers = [
        layer("bar", {}, x2={"datum": 1}, color=hue, tooltip=hover),
        layer("text", {"align": "left", "dx": 5, "fontSize": 11}, text=words("times")),
    ]
    return {"width": 470, "height": {"step": 18}, "layer": [{"encoding": encoding, "layer": layers}, the_base("x")]}
