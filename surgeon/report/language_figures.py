"""The figures of languages, or of tasks: what each variant did to each, by perplexity and by every other measurement.

Three parameters run through them, and a page sets them for all at once: `order` of the languages (script, family,
effect), `find` (part of a name) and `shown` (variants).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.model.results import PERPLEXITY, Quantity
from surgeon.report import entries
from surgeon.report.charts import (
    BROKEN,
    RATIOS,
    SERIES,
    SHAPES,
    Spec,
    amount,
    cells,
    closer,
    colour,
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
    named,
    the_base,
    tips,
    words,
)
from surgeon.report.data import Report
from surgeon.report.drawing import Figure
from surgeon.report.entries import MeasurementReport
from surgeon.report.story import Story, log_ratio, ratio, scored_languages, tell
from surgeon.report.words import capital, count, figure_texts, is_lost, number, quantity_text, with_unit

ORDERS = ("script", "family", "effect")
STEP = 20  # height of a language
_WIDE = 50.0  # values that span more than this factor stand on an axis that grows by factors
RANKED = {"field": "rank", "op": "min"}


def language_groups(report: Report, order: str) -> list[tuple[str, list[str]]]:
    """Arrange the languages: by script or family in named groups, or in one group by the largest effect."""
    codes = list(report.perplexity["base"])
    if order == "effect":  # how far the cut moves a language, either way
        cut = tell(report).cut
        moves = {code: abs(log_ratio(report, str(cut), code)) if cut in report.perplexity else 0.0 for code in codes}
        moves = {code: math.inf if math.isnan(move) else move for code, move in moves.items()}
        return [("", sorted(codes, key=lambda code: (-moves[code], report.language(code).name)))]
    groups: dict[str, list[str]] = {}
    for code in sorted(codes, key=lambda code: report.language(code).name):
        groups.setdefault(getattr(report.language(code), order), []).append(code)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def places(report: Report) -> dict[str, dict[str, Any]]:
    """Return for each language its place (`rank_ORDER`) and group (`group_ORDER`) in every order."""
    result: dict[str, dict[str, Any]] = {code: {} for code in report.perplexity["base"]}
    for order in ORDERS:
        members = [(title, code) for title, codes in language_groups(report, order) for code in codes]
        for rank, (title, code) in enumerate(members):
            result[code] |= {f"rank_{order}": rank, f"group_{order}": title}
    return result


def by_language(rows: list[dict[str, Any]], shown: Sequence[str]) -> Spec:
    """Return the rows of variants and languages, of which the three parameters let some through; the base's all."""
    values = {"order": "script", "find": "", "shown": list(shown)}
    return {
        "data": {"values": rows},
        "params": [{"name": name, "value": value} for name, value in values.items()],
        "transform": [
            {"filter": "indexof(datum.search, find) >= 0"},
            {"filter": "datum.variant == 'base' || indexof(shown, datum.variant) >= 0"},
            {"calculate": "datum['rank_' + order]", "as": "rank"},
            {"calculate": "datum['group_' + order]", "as": "group"},
        ],
    }


def language_fields(report: Report) -> dict[str, dict[str, Any]]:
    """Return for each language what a row of it says of it: its names, its groups, and its place in every order."""
    scored, fields = scored_languages(report), {}
    for code, place in places(report).items():
        known = report.language(code)
        fields[code] = {
            "language": known.name, "label": f"{'• ' if code in scored else ''}{known.name}",
            "script": known.script, "family": known.family, "scored": "yes" if code in scored else "no",
            "search": f"{known.name} {code} {known.script} {known.family}".lower(), **place,
        }  # fmt: skip
    return fields


def _rows(report: Report, story: Story) -> list[dict[str, Any]]:
    """Return a row for each variant and language, with all that a reader may ask of it."""
    fields, variants = language_fields(report), drawn_variants(report, story)
    guesses = {code: report.guessing(code) for code in fields}
    logs = {(name, code): log_ratio(report, name, code) for name in variants for code in fields}
    drawn = drawn_ratios([closer(log, guesses[code]) for (_, code), log in logs.items()])
    told = {
        code: ", ".join(f"{report.label(name)} ×{number(ratio(report, name, code))}" for name in variants)
        for code in fields
    }
    rows = []
    for name in variants:
        averaged = report.averaged(name)
        for code, known in fields.items():
            base, item = report.perplexity["base"][code], averaged[code]
            log, times = logs[name, code], ratio(report, name, code)
            said, lost = number(times), is_lost(log, guesses[code])
            rows.append({
                "variant": name, "name": report.label(name), "everything": told[code],
                **known, "own": story.own.get(name) == code,
                "base": number(base.perplexity), "perplexity": number(item.perplexity),
                "times": f"×{said}{', no better than guessing' if lost else ''}", "said": said,
                "broken": "" if is_drawable(log) else said, "multiple": times if math.isfinite(times) else said,
                "bits": f"{base.bits_per_byte:.3f} to {number(item.bits_per_byte)}",
                "ratio": drawn(closer(log, guesses[code])), **RATIOS.of(times, lost),
                **_interval(item.low, item.high, guesses[code], report.is_range(name)),
            })  # fmt: skip
    edge = max((row["ratio"] for row in rows), default=1.0)
    for row, (_, code) in zip(rows, logs, strict=True):
        guess = guesses[code]
        if guess is not None and 0 < guess < math.log(edge):
            row |= {"guess": math.exp(guess), "guess_end": edge}
    return rows


def drawn_variants(report: Report, story: Story) -> list[str]:
    """Return the variants that are drawn: those that are no points of a sweep, and the one that it is about."""
    alone = report.measured_alone
    return alone if story.cut is None or story.cut in alone else [story.cut, *alone]


def _interval(low: float | None, high: float | None, guess: float | None, is_range: bool) -> dict[str, Any]:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)) or low <= 0:
        return {}
    ends = [math.exp(closer(math.log(end), guess)) for end in (low, high)]
    said = f"×{number(low)} to ×{number(high)}" + (" (range)" if is_range else "")
    return {"low": ends[0], "high": ends[1], "interval": said}


def shown_names(report: Report, variants: Sequence[str]) -> str:
    """Return the expression that turns a variant of an axis or legend into its name for people."""
    return json.dumps({name: report.label(name) for name in variants}) + "[datum.value]"


def _hover(report: Report) -> list[Spec]:
    interval = {"interval": "interval"} if report.has_intervals else {}
    return tips(
        language="language", name="variant", times="of the base's perplexity", **interval, base="perplexity, base",
        perplexity="perplexity", bits="bits per byte", script="script", family="family", scored="scored on",
    )  # fmt: skip


# Names each group of languages at the right edge, beside its first language.
GROUP_NAMES: Spec = {
    "transform": [
        {"joinaggregate": [{"op": "min", "field": "rank", "as": "first"}], "groupby": ["group"]},
        {"filter": "datum.rank == datum.first && datum.group != ''"},
        {"aggregate": [{"op": "min", "field": "rank", "as": "rank"}], "groupby": ["group", "label"]},
    ],
    "mark": {"type": "text", "align": "left", "dx": 8, "fontSize": 11, "color": colour("quiet")},
    "encoding": {"y": named("label", RANKED), "x": {"value": "width"}, "text": words("group")},
}


def perplexity_figure(report: Report, story: Story) -> Figure:
    """Draw how many times the base's the perplexity of each variant is, a line per language, logarithmic."""
    variants = drawn_variants(report, story)
    legend = {
        "title": None, "values": {"expr": "shown"}, "symbolOpacity": 1, "labelExpr": shown_names(report, variants)
    }  # fmt: skip
    hue, shape = hue_and_shape("variant", variants, legend, series(variants, story))
    layers = [
        layer("rule", {"strokeWidth": 1.4}, x2={"datum": 1}, color=hue),
        *([intervals("x", hue)] if report.has_intervals else []),
        dots(46, _hover(report), hue, shape),
        BROKEN,
    ]
    encoding = {
        "x": multiples(True, "perplexity, as a multiple of the base's", orient="top"),
        "y": named("label", RANKED),
        "yOffset": words("variant", sort=[*story.shown[1:2], *story.shown[:1], *story.shown[2:]]),
    }
    rows = _rows(report, story)
    behind = layer("rect", {"opacity": 0}, y=named("label", RANKED), tooltip=tips(language="language", everything="×"))
    guesses = [row["guess"] for row in rows if "guess" in row]
    if guesses:
        lost = layer(
            "rule", {"strokeWidth": STEP - 3, "opacity": 0.22, "color": colour("quiet")}, "isValid(datum.guess)",
            x=amount("guess", aggregate="max"), x2={"field": "guess_end", "aggregate": "max"},
            y=named("label", RANKED),
        )  # fmt: skip
        axis = encoding["x"]["axis"]
        axis["labelExpr"] = f"datum.value > {min(guesses):.6g} ? '' : {axis['labelExpr']}"
    spec = {
        **by_language(rows, story.shown), "width": 470, "height": {"step": STEP, "for": "position"},
        "layer": [
            *([lost] if guesses else []), behind, {"encoding": encoding, "layer": layers}, the_base("x"), GROUP_NAMES,
        ],
    }  # fmt: skip
    text = (
        f"Perplexity in {count(len(report.perplexity['base']), 'language')} as a multiple of the base's (the line at "
        "×1), on a logarithmic scale. Right is worse."
    )
    if guesses:
        text += (
            f" Shaded: no better than a uniform guess over {report.model.vocabulary:,} tokens; what lies "
            "there is broken, and is compressed."
        )
    text += " • marks the languages on whose text importance was scored." if scored_languages(report) else ""
    text += " Bars are intervals of 95 %, or the range over seeds." if report.has_intervals else ""
    spec = finished(spec)
    longest = max(len(report.label(name)) for name in variants)
    spec["config"]["legend"]["columns"] = max(1, min(4, 520 // (7 * longest + 25)))
    return Figure("perplexity", "What it did, by language", text, spec, True, len(story.own) < 2)


def series(variants: Sequence[str], story: Story) -> list[tuple[str, str]]:
    """Return colour and shape of each variant; the cut has the first colour to itself, controls keep theirs."""
    order = [name for name in story.shown if name in variants]
    order += [name for name in variants if name not in order]
    looks = {}
    for i, name in enumerate(order):
        looks[name] = (SERIES[0] if i == 0 else SERIES[1 + (i - 1) % (len(SERIES) - 1)], SHAPES[i % len(SHAPES)])
    return [looks[name] for name in variants]


def ratio_figure(report: Report, story: Story) -> Figure:
    """Draw the map: languages down, variants across, the multiple of the base's perplexity as colour."""
    variants = drawn_variants(report, story)
    narrow, longest = len(variants) > 12, max(len(report.label(name)) for name in variants)
    level = len(variants) <= 3 or longest <= 8
    wide = 22 if narrow else max(50, 7 * longest + 10) if level else 50
    rows = _rows(report, story)
    layers = cells(rows, RATIOS, _hover(report), not narrow)
    own = any(row["own"] for row in rows)
    if own:
        for stroke, width in ((colour("ground"), 5), (colour("ink"), 2.4)):
            layers.append(layer("rect", {"filled": False, "stroke": stroke, "strokeWidth": width}, "datum.own"))
    encoding = {
        "x": heads("variant", variants, level, labelExpr=shown_names(report, variants)),
        "y": named("label", RANKED),
    }
    spec = {
        **by_language(rows, variants), "width": {"step": wide}, "height": {"step": STEP},
        "layer": [{"encoding": encoding, "layer": layers}, GROUP_NAMES],
    }  # fmt: skip
    text = (
        "Languages by variants; each cell is the perplexity as a multiple of the base's. The warmer the worse; blue is "
        "better, grey is within 1 % of the base."
    )
    text += " A frame marks the language whose own region the variant cuts." if own else ""
    return Figure("ratios", "Every variant in every language", text, finished(spec), key=len(story.own) > 1)


def measurement_figures(report: Report, story: Story) -> list[Figure]:
    """Draw the first quantity of every measurement but perplexity."""
    drawn = []
    for kind, item in report.measurements.items() if report.perplexity else ():
        models = [name for name in ("base", *drawn_variants(report, story)) if item.found.get(name)]
        if kind != PERPLEXITY and models:
            drawn.append(_measurement_figure(report, story, kind, models))
    return drawn


def _measurement_figure(report: Report, story: Story, kind: str, models: Sequence[str]) -> Figure:
    item = report.measurements[kind]
    quantity, of_languages = item.quantities[0], item.by == "language"
    rows = _measurement_rows(report, kind, quantity, models)
    variants = [name for name in models if name != "base"]
    looks = [("ink", SHAPES[0])] * models.count("base") + series(variants, story)
    shown = [name for name in models if name in story.shown] or variants
    legend: Spec = {"title": None, "symbolOpacity": 1, "labelExpr": shown_names(report, models)}
    if of_languages:
        of_all = "split('base\\n' + join(shown, '\\n'), '\\n')" if "base" in models else "shown"
        legend["values"] = {"expr": of_all}
    hue, shape = hue_and_shape("variant", models, legend, looks)
    hover = tips(
        **{item.by: item.by}, name="model", said=quantity.title, change="change from the base", interval="interval"
    )
    encoding = {
        "x": _value_axis(rows, quantity),
        "y": named("label", RANKED if of_languages else None),
        "yOffset": words("variant", sort=list(models)),
    }
    layers = [intervals("x", hue), dots(46, hover, hue, shape), BROKEN]
    chance = [] if quantity.chance is None else [dashed_at("x", quantity.chance)]
    spec: Spec = {
        **(by_language(rows, shown) if of_languages else {"data": {"values": rows}}),
        "width": 470, "height": {"step": STEP, "for": "position"},
        "layer": [*chance, {"encoding": encoding, "layer": layers}, *([GROUP_NAMES] if of_languages else [])],
    }  # fmt: skip
    title = capital(f"{quantity.title}, by {item.by}")
    return Figure(f"measured-{kind}", title, _caption(item, quantity, rows), finished(spec), fluid=True)


def _measurement_rows(report: Report, kind: str, quantity: Quantity, models: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each model and group; a value that is not a number stands at the edge, and says so."""
    item = report.measurements[kind]
    fields = language_fields(report) if item.by == "language" else {}
    figures = {
        (name, group): figure
        for name in models for group in dict.fromkeys(group for model in models for group in item.found[model])
        if (figure := report.figure(kind, name, group, quantity.name)) is not None
    }  # fmt: skip
    finite = [figure.value for figure in figures.values() if math.isfinite(figure.value)]
    edge = (max if quantity.worse == "more" else min)(finite, default=0.0)
    rows = []
    for (name, group), figure in figures.items():
        said, change, bounds = figure_texts(quantity, figure)
        told = {} if change is None else {"change": change}
        if bounds is not None:
            told["interval"] = f"{bounds} (range)" if report.is_range(name) else bounds
        rows.append({
            "variant": name, "name": report.label(name), **fields.get(group, {item.by: group, "label": group}),
            "value": figure.value if math.isfinite(figure.value) else edge, "said": f"{said} {quantity.unit}".rstrip(),
            "broken": "" if math.isfinite(figure.value) else said, **told,
            **_ends(quantity, figure, figures.get(("base", group))),
        })  # fmt: skip
    return rows


def _ends(quantity: Quantity, figure: entries.Figure, base: entries.Figure | None) -> dict[str, float]:
    """Return where an interval begins and ends on the axis of values; that of a change stands at the base's value."""
    if figure.low is None or figure.high is None:
        return {}
    ends = [figure.low, figure.high]
    if figure.change is not None and base is not None:
        ends = [base.value * end if quantity.compare == "ratio" else base.value + end for end in ends]
    return {"low": ends[0], "high": ends[1]} if all(map(math.isfinite, ends)) else {}


def _value_axis(rows: Sequence[Mapping[str, Any]], quantity: Quantity) -> Spec:
    """Return the axis of a quantity; where values span much, it grows by factors, with zero and small ones on it."""
    values = [row["value"] for row in rows]
    scale: Spec = {"zero": quantity.share, "padding": 8}
    axis: Spec = {"grid": True, "orient": "top"}
    if quantity.share:
        scale |= {"domain": [0, 1], "clamp": True}
        axis |= {"format": ".0%"}
    elif min(values) >= -1e-6 and max(values) > _WIDE * max(min(values), 1e-6):
        most = max(abs(row[key]) for row in rows for key in ("value", "low", "high") if key in row)
        scale = {"type": "symlog", "constant": most / 1000, "nice": False, "padding": 8}
        top = math.floor(math.log10(most))
        axis |= {"values": [0, *(10.0**power for power in range(top - 2, top + 1))], "format": "~g"}
    title = f"{with_unit(quantity)} ({'right' if quantity.worse == 'more' else 'left'} is worse)"
    return amount("value", title=title, scale=scale, axis=axis)


def _caption(item: MeasurementReport, quantity: Quantity, rows: Sequence[Mapping[str, Any]]) -> str:
    groups = len({row[item.by] for row in rows})
    text = f"{capital(item.title)}, in {count(groups, item.by)}. {capital(quantity.worse)} is worse."
    if quantity.chance is not None:
        text += f" The dashed line is chance, {quantity_text(quantity, quantity.chance)}."
    if any("low" in row for row in rows):
        of_change = " of the change from the base" if any("change" in row for row in rows) else ""
        text += f" Bars are intervals of 95 %{of_change}, or the range over seeds."
    return text
