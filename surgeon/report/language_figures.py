"""The figures of languages: what each variant did to the perplexity of each, as a chart and as a map.

Three parameters run through them, and a page sets them for all at once: `order` of the languages (script, family,
effect), `find` (part of a name) and `shown` (variants).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from surgeon.report.data import Report
from surgeon.report.drawing import (
    BROKEN,
    SERIES,
    SHAPES,
    Figure,
    Spec,
    amount,
    closer,
    colour,
    drawn_ratios,
    finished,
    is_drawable,
    layer,
    multiples,
    named,
    the_base,
    tips,
    words,
)
from surgeon.report.ramps import RATIOS, cells, heads
from surgeon.report.story import Story, log_ratio, ratio, scored_languages, tell
from surgeon.report.words import count, is_lost, number

ORDERS = ("script", "family", "effect")
STEP = 20  # height of a language
RANKED = {"field": "rank", "op": "min"}


def language_groups(report: Report, order: str) -> list[tuple[str, list[str]]]:
    """Arrange the languages: by script or family in named groups, or in one group by the largest effect."""
    codes = list(report.perplexity["base"])
    if order == "effect":
        return [("", sorted(codes, key=lambda code: (-_effect(report, code), report.language(code).name)))]
    groups: dict[str, list[str]] = {}
    for code in sorted(codes, key=lambda code: report.language(code).name):
        groups.setdefault(getattr(report.language(code), order), []).append(code)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def _effect(report: Report, code: str) -> float:
    """Return how far the cut moves a language, either way."""
    cut = tell(report).cut
    found = 0.0 if cut is None or cut not in report.perplexity else abs(log_ratio(report, cut, code))
    return math.inf if math.isnan(found) else found


def places(report: Report) -> dict[str, dict[str, Any]]:
    """Return for each language its place (`rank_ORDER`) and group (`group_ORDER`) in every order."""
    found: dict[str, dict[str, Any]] = {code: {} for code in report.perplexity["base"]}
    for order in ORDERS:
        members = [(title, code) for title, codes in language_groups(report, order) for code in codes]
        for rank, (title, code) in enumerate(members):
            found[code] |= {f"rank_{order}": rank, f"group_{order}": title}
    return found


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
    scored, found = scored_languages(report), {}
    for code, place in places(report).items():
        known = report.language(code)
        found[code] = {
            "language": known.name, "label": f"{'• ' if code in scored else ''}{known.name}",
            "script": known.script, "family": known.family, "scored": "yes" if code in scored else "no",
            "search": f"{known.name} {code} {known.script} {known.family}".lower(), **place,
        }  # fmt: skip
    return found


def _rows(report: Report, story: Story) -> list[dict[str, Any]]:
    """Return a row for each variant and language, with all that a reader may ask of it."""
    where, variants = language_fields(report), drawn_variants(report, story)
    guesses = {code: report.guessing(code) for code in where}
    logs = {(name, code): log_ratio(report, name, code) for name in variants for code in where}
    drawn = drawn_ratios([closer(log, guesses[code]) for (_, code), log in logs.items()])
    told = {
        code: ", ".join(f"{report.label(name)} ×{number(ratio(report, name, code))}" for name in variants)
        for code in where
    }
    rows = []
    for name in variants:
        found_in = report.averaged(name)
        for code, known in where.items():
            base, found = report.perplexity["base"][code], found_in[code]
            log, times = logs[name, code], ratio(report, name, code)
            said, lost = number(times), is_lost(log, guesses[code])
            rows.append({
                "variant": name, "name": report.label(name), "everything": told[code],
                **known, "own": story.own.get(name) == code,
                "base": number(base.perplexity), "perplexity": number(found.perplexity),
                "times": f"×{said}{', no better than guessing' if lost else ''}", "said": said,
                "broken": "" if is_drawable(log) else said, "multiple": times if math.isfinite(times) else said,
                "bits": f"{base.bits_per_byte:.3f} to {number(found.bits_per_byte)}",
                "ratio": drawn(closer(log, guesses[code])), **RATIOS.of(times, lost),
                **_interval(found.low, found.high, guesses[code], len(report.draws(name)) > 1),
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
    looks = series(variants, story)
    legend = {
        "title": None, "values": {"expr": "shown"}, "symbolOpacity": 1, "labelExpr": shown_names(report, variants)
    }  # fmt: skip
    hue = words("variant", legend=legend, scale={"domain": variants, "range": [colour(name) for name, _ in looks]})
    shape = words("variant", legend=legend, scale={"domain": variants, "range": [shape for _, shape in looks]})
    layers = [
        layer("rule", {"strokeWidth": 1.4}, x2={"datum": 1}, color=hue),
        layer("point", {"filled": True, "size": 46, "opacity": 1}, tooltip=_hover(report), color=hue, shape=shape),
        BROKEN,
    ]
    if report.has_intervals:
        look = {"strokeWidth": 5, "opacity": 0.35}
        layers.insert(1, layer("rule", look, "isValid(datum.low)", x=amount("low"), x2={"field": "high"}, color=hue))
    encoding = {
        "x": multiples(True, "perplexity, as a multiple of the base's", orient="top"),
        "y": named("label", RANKED),
        "yOffset": words("variant", sort=[*story.shown[1:2], *story.shown[:1], *story.shown[2:]]),
    }
    made = by_language(_rows(report, story), story.shown)
    behind = layer("rect", {"opacity": 0}, y=named("label", RANKED), tooltip=tips(language="language", everything="×"))
    guesses = [row["guess"] for row in made["data"]["values"] if "guess" in row]
    if guesses:
        lost = layer(
            "rule", {"strokeWidth": STEP - 3, "opacity": 0.22, "color": colour("quiet")}, "isValid(datum.guess)",
            x=amount("guess", aggregate="max"), x2={"field": "guess_end", "aggregate": "max"},
            y=named("label", RANKED),
        )  # fmt: skip
        axis = encoding["x"]["axis"]
        axis["labelExpr"] = f"datum.value > {min(guesses):.6g} ? '' : {axis['labelExpr']}"
    spec = {
        **made, "width": 470, "height": {"step": STEP, "for": "position"},
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
    made = finished(spec)
    longest = max(len(report.label(name)) for name in variants)
    made["config"]["legend"]["columns"] = max(1, min(4, 520 // (7 * longest + 25)))
    return Figure("perplexity", "What it did, by language", text, made, True, len(story.own) < 2)


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
    made = by_language(_rows(report, story), variants)
    rows = made["data"]["values"]
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
        **made, "width": {"step": wide}, "height": {"step": STEP},
        "layer": [{"encoding": encoding, "layer": layers}, GROUP_NAMES],
    }  # fmt: skip
    text = (
        "Languages by variants; each cell is the perplexity as a multiple of the base's. The warmer the worse; blue is "
        "better, grey is within 1 % of the base."
    )
    text += " A frame marks the language whose own region the variant cuts." if own else ""
    return Figure("ratios", "Every variant in every language", text, finished(spec), key=len(story.own) > 1)
