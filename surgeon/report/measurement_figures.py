"""The figures of measurements other than perplexity: what each model reaches by language, or by task.

Each shows the first quantity of its measurement, by its name, in its unit, with its direction, its interval, and what
chance alone would reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.model.results import PERPLEXITY, Quantity
from surgeon.report.data import Report
from surgeon.report.drawing import BROKEN, SHAPES, Figure, Spec, amount, colour, finished, layer, named, tips, words
from surgeon.report.language_figures import (
    GROUP_NAMES,
    RANKED,
    STEP,
    by_language,
    drawn_variants,
    language_fields,
    series,
    shown_names,
)
from surgeon.report.measured_entries import Figure as Found
from surgeon.report.measured_entries import MeasurementReport
from surgeon.report.story import Story
from surgeon.report.words import count, quantity_interval, quantity_text

_WIDE = 50.0  # values that span more than this factor stand on an axis that grows by factors


def measurement_figures(report: Report, story: Story) -> list[Figure]:
    """Draw the first quantity of every measurement but perplexity."""
    drawn = []
    for kind, item in report.measurements.items() if report.perplexity else ():
        models = [name for name in ("base", *drawn_variants(report, story)) if item.found.get(name)]
        if kind != PERPLEXITY and models:
            drawn.append(_figure(report, story, kind, item, models))
    return drawn


def _figure(report: Report, story: Story, kind: str, item: MeasurementReport, models: Sequence[str]) -> Figure:
    quantity, of_languages = item.quantities[0], item.by == "language"
    rows = _rows(report, item, quantity, models)
    looks = [("ink", SHAPES[0])] * models.count("base") + series(_variants(models), story)
    shown = [name for name in models if name in story.shown] or _variants(models)
    legend: Spec = {"title": None, "symbolOpacity": 1, "labelExpr": shown_names(report, models)}
    if of_languages:
        of_all = "split('base\\n' + join(shown, '\\n'), '\\n')" if "base" in models else "shown"
        legend["values"] = {"expr": of_all}
    hue, shape = (
        words("variant", legend=legend, scale={"domain": list(models), "range": values})
        for values in ([colour(look) for look, _ in looks], [form for _, form in looks])
    )
    hover = tips(
        **{item.by: item.by}, name="model", said=quantity.title, change="change from the base", interval="interval"
    )
    encoding = {
        "x": amount("value", title=_axis_title(quantity), scale=_scale(rows, quantity), axis=_axis(rows, quantity)),
        "y": named("label", RANKED if of_languages else None),
        "yOffset": words("variant", sort=list(models)),
    }
    layers = [
        layer("rule", {"strokeWidth": 5, "opacity": 0.35}, "isValid(datum.low)", x=amount("low"),
              x2={"field": "high"}, color=hue),
        layer("point", {"filled": True, "size": 46, "opacity": 1}, tooltip=hover, color=hue, shape=shape),
        BROKEN,
    ]  # fmt: skip
    chance = [] if quantity.chance is None else [{
        "data": {"values": [{}]}, "encoding": {"x": {"datum": quantity.chance}},
        "mark": {"type": "rule", "strokeDash": [5, 4], "color": colour("quiet")},
    }]  # fmt: skip
    spec: Spec = {
        **(by_language(rows, shown) if of_languages else {"data": {"values": rows}}),
        "width": 470, "height": {"step": STEP, "for": "position"},
        "layer": [*chance, {"encoding": encoding, "layer": layers}, *([GROUP_NAMES] if of_languages else [])],
    }  # fmt: skip
    title = f"{quantity.title[:1].upper()}{quantity.title[1:]}, by {item.by}"
    return Figure(f"measured-{kind}", title, _caption(item, quantity, rows), finished(spec), fluid=True)


def _variants(models: Sequence[str]) -> list[str]:
    return [name for name in models if name != "base"]


def _rows(report: Report, item: MeasurementReport, quantity: Quantity, models: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each model and group; a value that is not a number stands at the edge, and says so."""
    fields = language_fields(report) if item.by == "language" else {}
    found = {
        (name, group): figure
        for name in models for group in dict.fromkeys(group for model in models for group in item.found[model])
        if (figure := item.averaged(report.draws(name), group, quantity.name)) is not None
    }  # fmt: skip
    finite = [figure.value for figure in found.values() if math.isfinite(figure.value)]
    edge = (max if quantity.worse == "more" else min)(finite, default=0.0)
    rows = []
    for (name, group), figure in found.items():
        said, several = quantity_text(quantity, figure.value), len(report.draws(name)) > 1
        rows.append({
            "variant": name, "name": report.label(name), **fields.get(group, {item.by: group, "label": group}),
            "value": figure.value if math.isfinite(figure.value) else edge, "said": f"{said} {quantity.unit}".rstrip(),
            "broken": "" if math.isfinite(figure.value) else said, **_change(quantity, figure, several),
            **_ends(quantity, figure, found.get(("base", group))),
        })  # fmt: skip
    return rows


def _change(quantity: Quantity, figure: Found, is_range: bool) -> dict[str, str]:
    change = figure.change
    said = {} if change is None else {"change": quantity_text(quantity, change, change=True)}
    if figure.low is not None and figure.high is not None:
        bounds = quantity_interval(quantity, figure.low, figure.high, change is not None)
        said["interval"] = f"{bounds} (range)" if is_range else bounds
    return said


def _ends(quantity: Quantity, figure: Found, base: Found | None) -> dict[str, float]:
    """Return where an interval begins and ends on the axis of values; that of a change stands at the base's value."""
    if figure.low is None or figure.high is None:
        return {}
    ends = [figure.low, figure.high]
    if figure.change is not None and base is not None:
        ends = [base.value * end if quantity.compare == "ratio" else base.value + end for end in ends]
    return {"low": ends[0], "high": ends[1]} if all(map(math.isfinite, ends)) else {}


def _values(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [abs(row[key]) for row in rows for key in ("value", "low", "high") if key in row]


def _is_wide(rows: Sequence[Mapping[str, Any]], quantity: Quantity) -> bool:
    values = [row["value"] for row in rows]
    return not quantity.share and min(values) >= -1e-6 and max(values) > _WIDE * max(min(values), 1e-6)


def _scale(rows: Sequence[Mapping[str, Any]], quantity: Quantity) -> Spec:
    if _is_wide(rows, quantity):  # small values in their place, and zero on the axis
        return {"type": "symlog", "constant": max(_values(rows)) / 1000, "nice": False, "padding": 8}
    return {"zero": quantity.share, "padding": 8, **({"domain": [0, 1], "clamp": True} if quantity.share else {})}


def _axis(rows: Sequence[Mapping[str, Any]], quantity: Quantity) -> Spec:
    axis: Spec = {"grid": True, "orient": "top"}
    if quantity.share:
        return {**axis, "format": ".0%"}
    if _is_wide(rows, quantity):
        top = math.floor(math.log10(max(_values(rows))))
        return {**axis, "values": [0, *(10.0**power for power in range(top - 2, top + 1))], "format": "~g"}
    return axis


def _axis_title(quantity: Quantity) -> str:
    unit = f", {quantity.unit}" if quantity.unit and quantity.unit != quantity.title else ""
    return f"{quantity.title}{unit} ({'right' if quantity.worse == 'more' else 'left'} is worse)"


def _caption(item: MeasurementReport, quantity: Quantity, rows: Sequence[Mapping[str, Any]]) -> str:
    groups = len({row[item.by] for row in rows})
    text = f"{item.title[:1].upper()}{item.title[1:]}, in {count(groups, item.by)}."
    text += f" {'More' if quantity.worse == 'more' else 'Less'} is worse."
    if quantity.chance is not None:
        text += f" The dashed line is chance, {quantity_text(quantity, quantity.chance)}."
    if any("low" in row for row in rows):
        of_change = " of the change from the base" if any("change" in row for row in rows) else ""
        text += f" Bars are intervals of 95 %{of_change}, or the range over seeds."
    return text
