"""The figure of a sweep: perplexity as a multiple of the base's, over an axis of numbers or in bars."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from surgeon.model.results import exponential
from surgeon.report.data import Report
from surgeon.report.drawing import SERIES, SHAPES, Figure, colour, drawn_ratios, finished, is_drawable, multiples
from surgeon.report.words import coordinate, is_number, number

if TYPE_CHECKING:
    import altair as alt


def sweep_figure(report: Report, name: str) -> Figure:
    """Draw a sweep: lines over its first axis of numbers, a line per value of the other axes; bars if there is none."""
    import altair as alt

    sweep = report.sweeps[name]
    axis = next((axis for axis, values in sweep.axes.items() if len(values) > 1 and all(map(is_number, values))), None)
    along = axis or next(iter(sweep.axes))
    rows = _rows(report, name, along)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    colours = [colour(name) for name in _cycled(SERIES, kinds)]
    looks = {
        "color": alt.Color("kind:N", title=None).scale(domain=kinds, range=colours),
        "shape": alt.Shape("kind:N", title=None).scale(domain=kinds, range=_cycled(SHAPES, kinds)),
    }
    if len(kinds) == 1:
        looks = {channel: look.legend(None) for channel, look in looks.items()}
    hover = [alt.Tooltip(f"{field}:N", title=title) for field, title in (
        ("point", "point"), ("along", along), ("kind", "of"), ("times", "of the base's perplexity"),
    )]  # fmt: skip
    chart = alt.Chart(alt.InlineData(values=rows))
    draw = _lines if axis is not None else _bars
    spec = draw(chart, sweep.axes[along], along, looks, hover)
    logs = _logs(report, name)
    worst = max(logs, key=lambda point: math.inf if math.isnan(logs[point]) else logs[point])
    others = [other for other in sweep.axes if other != along]
    caption = (
        f"Perplexity by {' and '.join([along, *others])}: geometric mean over the languages at {len(rows)} points, as "
        "a multiple of the base's (the line at ×1), on a logarithmic scale. "
        f"Most at {worst}: ×{number(exponential(logs[worst]))}."
    )
    key = list(sweep.axes) != ["seed"]  # the draws of one control are no picture for the first screen
    return Figure(f"sweep-{name}", f"What {name} does, by {along}", caption, finished(spec), True, key)


def _logs(report: Report, name: str) -> dict[str, float]:
    """Return the logarithm of each point's mean ratio to the base."""
    base = report.summary["base"].log_geometric_mean_perplexity
    return {point: report.summary[point].log_geometric_mean_perplexity - base for point in report.sweeps[name].points}


def _rows(report: Report, name: str, along: str) -> list[dict[str, Any]]:
    sweep, logs = report.sweeps[name], _logs(report, name)
    drawn = drawn_ratios(logs.values())
    place = list(sweep.axes).index(along)
    rows = []
    for point, values in sweep.points.items():
        log, rest = logs[point], [*values[:place], *values[place + 1 :]]
        row = {
            "point": point, "x": values[place] if is_number(values[place]) else coordinate(values[place]),
            "along": coordinate(values[place]), "kind": ", ".join(map(coordinate, rest)) or name,
            "ratio": drawn(log), "times": f"×{number(exponential(log))}",
            "broken": "" if is_drawable(log) else f"×{number(exponential(log))}",
        }  # fmt: skip
        rows.append(row)
    return rows


def _cycled(values: list[str], kinds: list[str]) -> list[str]:
    return [values[i % len(values)] for i in range(len(kinds))]


def _lines(
    chart: alt.Chart, xs: list[float], along: str, looks: dict[str, Any], hover: list[Any]
) -> alt.LayerChart | alt.FacetChart:
    import altair as alt

    # Where values span more than a factor of 8, equal steps are equal factors.
    is_log = min(xs) > 0 and max(xs) / min(xs) > 8
    x = (
        alt.X("x:Q", title=along + (", logarithmic" if is_log else ""))
        .scale(type="log" if is_log else "linear", nice=False, padding=16, zero=alt.Undefined if is_log else False)
        .axis(values=sorted(set(xs)), format="~g", grid=False, labelOverlap=True)
    )
    y = multiples(False, "times the base's perplexity")
    line = chart.mark_line(strokeWidth=2).encode(x=x, y=y, color=looks["color"], detail="kind:N")
    mark = chart.mark_point(filled=True, size=80, opacity=1).encode(x=x, y=y, tooltip=hover, **looks)
    broken = (
        chart.transform_filter("datum.broken != ''")
        .mark_text(align="right", dx=-8, fontSize=11)
        .encode(x=x, y=y, text="broken:N")
    )
    one = alt.Chart().mark_rule(color=colour("ink")).encode(y=alt.YDatum(1))
    return alt.layer(one, line, mark, broken).properties(width=520, height=300)


def _bars(
    chart: alt.Chart, values: list[Any], along: str, looks: dict[str, Any], hover: list[Any]
) -> alt.LayerChart | alt.FacetChart:
    import altair as alt

    y = alt.Y("along:N", sort=[coordinate(value) for value in values], title=along).axis(domain=False, ticks=False)
    x = multiples(True, "times the base's perplexity")
    lane = alt.YOffset("kind:N")
    bar = chart.mark_bar().encode(y=y, yOffset=lane, x=x, x2=alt.X2Datum(1), tooltip=hover, color=looks["color"])
    said = chart.mark_text(align="left", dx=5, fontSize=11).encode(y=y, yOffset=lane, x=x, text="times:N")
    one = alt.Chart().mark_rule(color=colour("ink")).encode(x=alt.XDatum(1))
    return alt.layer(bar, one, said).properties(width=470, height=alt.Step(18))
