"""The figure of a sweep: perplexity as a multiple of the base's, over an axis of numbers or in bars."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence

from surgeon.report.data import Report, SweepReport
from surgeon.report.svg import CHARACTER, OVERFLOW, WIDTH, Bar, Figure, bars, legend, line, log_ticks, marker, text
from surgeon.report.words import coordinate, from_log, is_number, number

_HEIGHT = 250.0


def sweep_figure(report: Report, name: str) -> Figure:
    """Draw a sweep: lines over its first axis of numbers, one per value of the other axes; bars if there is none."""
    sweep = report.sweeps[name]
    axis = next((axis for axis, values in sweep.axes.items() if len(values) > 1 and all(map(is_number, values))), None)
    along = axis or next(iter(sweep.axes))
    others = [other for other in sweep.axes if other != along]
    base = report.summary["base"].log_geometric_mean_perplexity
    logs = {point: report.summary[point].log_geometric_mean_perplexity - base for point in sweep.points}
    worst = max(logs, key=lambda point: math.inf if math.isnan(logs[point]) else logs[point])
    description = (
        f"Geometric mean over the languages at {len(logs)} points, as a multiple of the base's, on a logarithmic "
        f"scale. The strongest effect is that of {worst}: ×{number(from_log(logs[worst]))}."
    )
    title = f"{name}: perplexity by {' and '.join([along, *others])}"
    if axis is None:
        return _bars(f"sweep-{name}", title, description, sweep, along, logs)
    return _lines(f"sweep-{name}", title, description, sweep, along, logs)


def _series(sweep: SweepReport, along: str) -> list[tuple[str, list[str]]]:
    """Return, for each combination of the other axes' values, its label and its points in the order of `along`."""
    at = {json.dumps(values): point for point, values in sweep.points.items()}
    others = [values for axis, values in sweep.axes.items() if axis != along]
    place = list(sweep.axes).index(along)
    result = []
    for rest in itertools.product(*others):
        points = [at[json.dumps([*rest[:place], value, *rest[place:]])] for value in sweep.axes[along]]
        result.append((", ".join(map(coordinate, rest)), points))
    return result


def _bars(name: str, title: str, description: str, sweep: SweepReport, along: str, logs: dict[str, float]) -> Figure:
    series = _series(sweep, along)
    # Noise must not look like an effect: a factor of two is the least that takes the full length.
    full = max([math.log(2), *(log for log in logs.values() if _usable(log))])

    def bar(point: str, i: int, label: str) -> Bar:
        log = logs[point]
        length = max(log, 0.0) / full if _usable(log) else 1.0
        return Bar(length, (i + 1) % 6, f"×{number(from_log(log))} {label}".rstrip())

    groups = [
        (coordinate(value), [bar(points[at], i, label) for i, (label, points) in enumerate(series)])
        for at, value in enumerate(sweep.axes[along])
    ]
    return bars(name, title, description, groups, (0.0, "×1: no change"))


def _lines(name: str, title: str, description: str, sweep: SweepReport, along: str, logs: dict[str, float]) -> Figure:
    series, xs = _series(sweep, along), sweep.axes[along]
    key, top = legend([label for label, _ in series], 0, series=1) if len(sweep.axes) > 1 else ("", 0.0)
    usable = [log for log in logs.values() if _usable(log)]
    low, high = min([0.0, *usable]), max([math.log(2), *usable])
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    ticks = log_ticks(low, high)
    left = 10 + CHARACTER * max(len(_times(tick)) for tick in ticks)
    top += 26
    ceiling = top + (0 if len(usable) == len(logs) else 26)  # above it stand the models that are merely broken
    bottom = ceiling + _HEIGHT

    def height(log: float) -> float:
        return bottom - (log - low) / (high - low) * (bottom - ceiling) if _usable(log) else top + 10

    along_x, is_log = _scale(xs, left + 14, WIDTH - 24)
    parts = [key, text(0, top - 10, "times the base's perplexity", kind="quiet")]
    for tick in ticks:
        y = height(math.log(tick))
        kind = "mark" if tick == 1 else "grid"
        parts += [line(left, y, WIDTH, y, kind), text(left - 6, y + 4.5, _times(tick), "end", "quiet")]
    parts += _x_ticks(xs, along_x, bottom)
    parts.append(text(left, bottom + 42, along + (", logarithmic" if is_log else ""), kind="quiet"))
    # The first series is drawn last, on top of those that coincide with it.
    for i, (label, points) in reversed(list(enumerate(series, 1))):
        for (x, point), (after, then) in itertools.pairwise(sorted(zip(xs, points, strict=True))):
            kind = f"line{i % 6}" if _usable(logs[point]) and _usable(logs[then]) else "link"
            parts.append(line(along_x(x), height(logs[point]), along_x(after), height(logs[then]), kind))
        for x, point in zip(xs, points, strict=True):
            times = f"×{number(from_log(logs[point]))}"
            tip = f"{along} {coordinate(x)}{', ' if label else ''}{label}: {times}"
            parts.append(marker(along_x(x), height(logs[point]), i, tip))
            if not _usable(logs[point]):
                parts.append(text(along_x(x) - 9, height(logs[point]) + 4.5, times, "end", "small"))
    return Figure(name, title, description, bottom + 50, "".join(parts))


def _usable(log: float) -> bool:
    return math.isfinite(log) and log <= OVERFLOW


def _scale(values: Sequence[float], left: float, right: float) -> tuple[Callable[[float], float], bool]:
    """Return a map from values to places, and whether it is logarithmic: where they span more than a factor of 8."""
    is_log = min(values) > 0 and max(values) / min(values) > 8
    low, high = (math.log(limit) if is_log else limit for limit in (min(values), max(values)))

    def place(value: float) -> float:
        share = ((math.log(value) if is_log else value) - low) / (high - low)
        return left + share * (right - left)

    return place, is_log


def _x_ticks(values: Sequence[float], place: Callable[[float], float], y: float) -> list[str]:
    """Mark the values on the axis, as many of them as have room."""
    parts, free = [], -math.inf
    for value in sorted(values):
        label, x = coordinate(value), place(value)
        half = CHARACTER * len(label) / 2
        parts.append(line(x, y, x, y + 5, "grid"))
        if x - half > free:
            parts.append(text(x, y + 20, label, "middle"))
            free = x + half + 4
    return parts


def _times(tick: float) -> str:
    """Label a multiple on the scale."""
    return f"×{tick:,g}" if tick < 1e6 else f"×{tick:.0e}".replace("e+0", "e").replace("e+", "e")
