"""The figures of a report, as Vega-Lite: perplexity by language, the map of variants, overlaps, crowding.

Three parameters run through those of languages, and a page sets them for all at once: `order` of the languages
(script, family, effect), `find` (part of a name) and `shown` (variants).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from surgeon.report.data import Report
from surgeon.report.drawing import (
    COOL,
    HEAT,
    SERIES,
    SHAPES,
    STRONG,
    Figure,
    colour,
    drawn_ratios,
    finished,
    is_drawable,
    multiples,
    named,
)
from surgeon.report.scan import scan_figures
from surgeon.report.story import Story, log_ratio, own_language, ratio, regions_of, scored_languages, tell
from surgeon.report.sweeps import sweep_figure
from surgeon.report.words import count, number, percent, roles_in_order
from surgeon.text.languages import language, language_name

if TYPE_CHECKING:
    import altair as alt

ORDERS = ("script", "family", "effect")
_STEP = 20  # height of a language


@dataclass(frozen=True)
class Ramp:
    """Colours for steps of a value: one below the first of `ends`, one from each on; `labels` say them in a legend."""

    title: str
    ends: tuple[float, ...]
    colours: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def make(cls, title: str, ends: Sequence[float], colours: Sequence[str], sign: str = "", lowest: str = "") -> Ramp:
        """Label the steps from their ends; `lowest` is another label for the first."""
        between = [f"{sign}{low:g} to {high:g}" for low, high in itertools.pairwise(ends)]
        labels = (lowest or f"under {sign}{ends[0]:g}", *between, f"{sign}{ends[-1]:g} and more")
        return cls(title, tuple(ends), tuple(colours), labels)

    def of(self, value: float) -> dict[str, Any]:
        """Return a value's step, and whether text on its colour takes the ground's; not a number is the last."""
        step = len(self.ends) if math.isnan(value) else sum(value >= end for end in self.ends)
        return {"step": self.labels[step], "strong": self.colours[step] in STRONG}


# Grey is what lies within 1 % of the base, or of chance.
_RATIOS = (0.5, 0.8, 0.99, 1.01, 1.05, 1.2, 1.5, 2, 4, 20)
RATIOS = Ramp.make("times the base's perplexity", _RATIOS, [*COOL, "none", *HEAT], "×")
JACCARD = Ramp.make("Jaccard index", (0.01, 0.05, 0.1, 0.2, 0.3, 0.5), ["none", *HEAT[:6]], lowest="by chance")
CROWDING = Ramp.make("per cent of the entries", (3, 5, 10, 20, 40, 70), ["none", *HEAT[:6]])


def figures(report: Report) -> list[Figure]:
    """Return all figures that the report has data for; the key ones, which a page shows first, come first."""
    story, result = tell(report), []
    if report.perplexity:
        alone = report.only(report.measured_alone)
        if story.cut is not None:
            result += [perplexity_figure(alone, story), ratio_figure(alone, story)]
        result += [sweep_figure(report, name) for name in report.sweeps]
    result += scan_figures(report, story)
    if any(abs(pair.jaccard - pair.by_chance) >= 0.01 for pair in report.overlaps):
        result.append(overlap_figure(report))
    if any(region.spreads for region in report.regions.values()):
        result.append(crowding_figure(report))
    return result


def variant_figures(report: Report, variant: str) -> list[Figure]:
    """Return the figures of one variant's card: what it did, and where its region is if the report describes that."""
    story = tell(report, variant)
    result = [perplexity_figure(report.only([variant, *report.measured_alone]), story)]
    if any(region in report.regions for region in regions_of(report, variant)):
        result += [figure for figure in scan_figures(report, story) if figure.name == "scan"]
    return [replace(figure, key=True) for figure in result]


def language_groups(report: Report, order: str) -> list[tuple[str, list[str]]]:
    """Arrange the languages: by script or family in named groups, or in one group by the largest effect."""
    codes = list(report.perplexity["base"])
    if order == "effect":
        return [("", sorted(codes, key=lambda code: (-_effect(report, code), language_name(code))))]
    groups: dict[str, list[str]] = {}
    for code in sorted(codes, key=language_name):
        groups.setdefault(getattr(language(code), order), []).append(code)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def _effect(report: Report, code: str) -> float:
    ratios = [abs(log_ratio(report, variant, code)) for variant in report.measured_alone]
    return max((math.inf if math.isnan(ratio) else ratio for ratio in ratios), default=0.0)


def places(report: Report) -> dict[str, dict[str, Any]]:
    """Return for each language its place (`rank_ORDER`) and group (`group_ORDER`) in every order."""
    found: dict[str, dict[str, Any]] = {code: {} for code in report.perplexity["base"]}
    for order in ORDERS:
        groups = language_groups(report, order)
        members = [(title, code) for title, codes in groups for code in codes]
        for rank, (title, code) in enumerate(members):
            found[code] |= {f"rank_{order}": rank, f"group_{order}": title}
    return found


def _rows(report: Report, variants: Sequence[str], story: Story) -> list[dict[str, Any]]:
    """Return a row for each variant and language, with all that a reader may ask of it."""
    scored, where = scored_languages(report), places(report)
    logs = [log_ratio(report, name, code) for name in variants for code in where]
    drawn = drawn_ratios(logs)
    rows = []
    for name in variants:
        for code, place in where.items():
            base, found = report.perplexity["base"][code], report.perplexity[name][code]
            known, log, times = language(code), log_ratio(report, name, code), ratio(report, name, code)
            rows.append({
                "variant": name, "language": known.name, "label": f"{'• ' if code in scored else ''}{known.name}",
                "script": known.script, "family": known.family,
                "scored": "yes" if code in scored else "no", "own": story.own.get(name) == code,
                "base": number(base.perplexity), "perplexity": number(found.perplexity),
                "times": f"×{number(times.ratio)}", "said": number(times.ratio),
                "bits": f"{base.bits_per_byte:.3f} to {number(found.bits_per_byte)}",
                "ratio": drawn(log), "broken": "" if is_drawable(log) else number(times.ratio),
                **RATIOS.of(times.ratio),
                "search": f"{known.name} {code} {known.script} {known.family}".lower(), **place,
                **_interval(times.low, times.high),
            })  # fmt: skip
    return rows


def _interval(low: float | None, high: float | None) -> dict[str, Any]:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return {}
    return {"low": low, "high": high, "interval": f"×{number(low)} to ×{number(high)}"}


def _prepared(report: Report, story: Story, variants: Sequence[str], shown: Sequence[str]) -> alt.Chart:
    """Return a chart of the rows that the three parameters let through, with `rank` and `group` in the order."""
    import altair as alt

    parameters = [
        alt.param(name=name, value=value) for name, value in (("order", "script"), ("find", ""), ("shown", list(shown)))
    ]
    return (
        alt.Chart(alt.InlineData(values=_rows(report, variants, story)))
        .add_params(*parameters)
        .transform_filter("indexof(datum.search, find) >= 0 && indexof(shown, datum.variant) >= 0")
        .transform_calculate(rank="datum['rank_' + order]", group="datum['group_' + order]")
    )


def _hover(report: Report) -> list[alt.Tooltip]:
    said = {
        "language": "language", "variant": "variant", "times": "of the base's perplexity", "interval": "interval",
        "base": "perplexity, base", "perplexity": "perplexity", "bits": "bits per byte", "script": "script",
        "family": "family", "scored": "scored on",
    }  # fmt: skip
    if not report.has_intervals:
        del said["interval"]
    return _tips(**said)


def perplexity_figure(report: Report, story: Story) -> Figure:
    """Draw how many times the base's the perplexity of each variant is, a line per language, logarithmic."""
    import altair as alt

    variants = [name for name in report.perplexity if name != "base"]
    chart = _prepared(report, story, variants, story.shown)
    y = named("label", sort=alt.EncodingSortField("rank", op="min"))
    x = multiples(True, "perplexity, as a multiple of the base's", orient="top")
    lane = alt.YOffset("variant:N", sort=[*story.shown[1:2], *story.shown[:1], *story.shown[2:]])
    looks = series(variants, story)
    legend = alt.Legend(title=None, values=alt.ExprRef("shown"))
    colours, shapes = [colour(name) for name, _ in looks], [shape for _, shape in looks]
    key = {
        "color": alt.Color("variant:N", legend=legend).scale(domain=variants, range=colours),
        "shape": alt.Shape("variant:N", legend=legend).scale(domain=variants, range=shapes),
    }
    stem = chart.mark_rule(strokeWidth=1.4).encode(y=y, yOffset=lane, x=x, x2=alt.X2Datum(1), color=key["color"])
    mark = chart.mark_point(filled=True, size=46, opacity=1)
    mark = mark.encode(y=y, yOffset=lane, x=x, tooltip=_hover(report), **key)
    broken = (
        chart.transform_filter("datum.broken != ''")
        .mark_text(align="right", dx=-8, fontSize=11)
        .encode(y=y, yOffset=lane, x=x, text="broken:N")
    )
    one = alt.Chart().mark_rule(strokeWidth=1.2, color=colour("ink")).encode(x=alt.XDatum(1))
    layers = [stem, mark, broken, one, _group_names(chart, y)]
    if report.has_intervals:
        layers.insert(1, chart.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=5, opacity=0.35).encode(
            y=y, yOffset=lane, x=alt.X("low:Q"), x2="high:Q", color=key["color"]
        ))  # fmt: skip
    spec = alt.layer(*layers).properties(width=470, height={"step": _STEP, "for": "position"})
    text = _perplexity_caption(report, story)
    return Figure("perplexity", "What it did, by language", text, finished(spec), True, len(story.own) < 2)


def _perplexity_caption(report: Report, story: Story) -> str:
    languages = count(len(report.perplexity["base"]), "language")
    text = (
        f"Perplexity of {' and of '.join(story.shown)} in {languages}, as a multiple of the base's (the line at ×1), "
        "on a logarithmic scale; to the right is worse."
    )
    if scored_languages(report):
        text += " • marks the languages on whose text importance was scored."
    return text + (" Bars are intervals." if report.has_intervals else "")


def _group_names(chart: alt.Chart, y: alt.Y) -> alt.Chart:
    """Name each group of languages at the right edge, beside its first language."""
    import altair as alt

    first = (
        chart.transform_joinaggregate(first="min(rank)", groupby=["group"])
        .transform_filter("datum.rank == datum.first && datum.group != ''")
        .transform_aggregate(rank="min(rank)", groupby=["group", "label"])
    )
    title = first.mark_text(align="left", dx=8, fontSize=11, color=colour("quiet"))
    drawn: alt.Chart = title.encode(y=y, x=alt.value("width"), text="group:N")
    return drawn


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
    import altair as alt

    variants = [name for name in report.perplexity if name != "base"]
    chart = _prepared(report, story, variants, variants)
    narrow, longest = len(variants) > 12, max(map(len, variants))
    level = len(variants) <= 3 or longest <= 8
    x = alt.X("variant:N", sort=variants, title=None).axis(
        orient="top", labelAngle=0 if level else -40, domain=False, ticks=False, labelLimit=160
    )
    y = named("label", sort=alt.EncodingSortField("rank", op="min"))
    rows = chart.data.values
    layers = _cells(chart, x, y, rows, RATIOS, _hover(report), not narrow)
    own = any(row["own"] for row in rows)
    if own:
        frame = chart.transform_filter("datum.own").mark_rect(filled=False, stroke=colour("ink"), strokeWidth=1.6)
        layers.append(frame.encode(x=x, y=y))
    wide = 22 if narrow else max(50, 7 * longest + 10) if level else 50
    spec = alt.layer(*layers, _group_names(chart, y)).properties(width=alt.Step(wide), height=alt.Step(_STEP))
    text = (
        "Languages by variants; each cell is the perplexity as a multiple of the base's. The warmer the worse; blue is "
        "better, grey is within 1 % of the base."
    )
    text += " A frame marks the language whose own region the variant cuts." if own else ""
    return Figure("ratios", "Every variant in every language", text, finished(spec), key=len(story.own) > 1)


def _cells(
    chart: alt.Chart, x: alt.X, y: alt.Y, rows: list[dict[str, Any]], ramp: Ramp, hover: list[alt.Tooltip], said: bool
) -> list[alt.Chart]:
    """Return a map's layers: fields in the colour of their `step`, and what is `said` in them."""
    import altair as alt

    used = [i for i, label in enumerate(ramp.labels) if any(row["step"] == label for row in rows)]
    scale = alt.Scale(domain=[ramp.labels[i] for i in used], range=[colour(ramp.colours[i]) for i in used])
    fill = alt.Color("step:N", scale=scale).legend(
        title=ramp.title, orient="bottom", columns=3, symbolType="square", symbolSize=130, symbolStrokeWidth=0
    )
    cells = chart.mark_rect(stroke=colour("ground"), strokeWidth=1).encode(x=x, y=y, color=fill, tooltip=hover)
    ink = alt.condition("datum.strong", alt.value(colour("ground")), alt.value(colour("ink")))
    return [cells, chart.mark_text(fontSize=11).encode(x=x, y=y, text="said:N", color=ink)] if said else [cells]


def overlap_figure(report: Report) -> Figure:
    """Draw which regions share entries: the Jaccard index of every two; single languages' stand by family."""
    import altair as alt

    own = {name: own_language(report, name) for name in report.regions}
    names = sorted(report.regions, key=lambda name: (own[name] is not None, language(own[name] or "").family))
    rows = []
    for pair in report.overlaps:
        for left, right in ((pair.left, pair.right), (pair.right, pair.left)):
            beyond = 0.0 if abs(pair.jaccard - pair.by_chance) < 0.01 else pair.jaccard
            rows.append({
                "left": left, "right": right, "said": f"{pair.jaccard:.2f}", "exactly": f"{pair.jaccard:.4f}",
                "chance": f"{pair.by_chance:.4f}", **JACCARD.of(beyond),
            })  # fmt: skip
    x = alt.X("left:N", sort=names, title=None).axis(orient="top", labelAngle=-40, domain=False, ticks=False)
    y = named("right", sort=names)
    hover = _tips(left="region", right="and", exactly="Jaccard index", chance="by chance")
    chart = alt.Chart(alt.InlineData(values=rows))
    layers = _cells(chart, x, y, rows, JACCARD, hover, len(names) <= 16)
    step = 20 if len(names) > 16 else 42
    spec = alt.layer(*layers).properties(width=alt.Step(step), height=alt.Step(22))
    text = (
        "Entries that two regions share, as a part of those that either has (Jaccard index). Grey: no more and no "
        "fewer than random regions of their sizes would, within 0.01."
    )
    return Figure("overlaps", "Which regions share entries", text, finished(spec))


def _tips(**said: str) -> list[alt.Tooltip]:
    import altair as alt

    return [alt.Tooltip(f"{field}:N", title=title) for field, title in said.items()]


def crowding_figure(report: Report) -> Figure:
    """Draw how far each region's entries crowd into few rows and columns, role by role."""
    import altair as alt

    regions = {name: region for name, region in report.regions.items() if region.spreads}
    rows = []
    for name, region in regions.items():
        at = region.spread_at.index(0.01)
        for role, spread in region.spreads.items():
            for axis in ("rows", "columns"):
                share = getattr(spread, axis)[at]
                rows.append({
                    "region": name, "role": role, "axis": axis,
                    "said": f"{100 * share:.2g}" if share < 0.995 else "100", "exactly": percent(share),
                    **CROWDING.of(100 * share),
                })  # fmt: skip
    roles = roles_in_order(row["role"] for row in rows)
    y = named("role", sort=roles)
    x = alt.X("region:N", sort=list(regions), title=None).axis(orient="top", labelAngle=-40, domain=False, ticks=False)
    hover = _tips(region="region", role="role", exactly="of its entries there", axis="in the fullest 1 % of")
    chart = alt.Chart(alt.InlineData(values=rows))
    few = len(regions) <= 12
    layers = alt.layer(*_cells(chart, x, y, rows, CROWDING, hover, few))
    spec = layers.properties(width=alt.Step(32 if few else 14), height=alt.Step(22)).facet(
        column=alt.Column("axis:N", sort="descending", title=None)
    )
    text = (
        "Share, in per cent, of a role's entries that the fullest 1 % of its matrices' rows, and of their columns, "
        "hold. Spread evenly it is 1 %, by chance a little more; grey is below 3 %."
    )
    return Figure("crowding", "How far entries crowd into few rows and columns", text, finished(spec))
