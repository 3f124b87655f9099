"""Where a cut breaks the model: its parts one at a time, as report, figures, tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from surgeon.checkpoint.ties import Ties
from surgeon.measure.parts import Part, place_of
from surgeon.measure.uncertainty import change_interval
from surgeon.model.results import Measure, Sums, exponential, geometric_mean
from surgeon.report.charts import RATIOS, cells, colour_map, finished, heads, named, tips
from surgeon.report.data import Report
from surgeon.report.drawing import Figure
from surgeon.report.entries import PartReport, PartsReport
from surgeon.report.grid import Cell, Grid, Row, times_cell
from surgeon.report.measured import Measures, bounds, mean_ratio_bounds
from surgeon.report.words import interval, is_lost, number

_SAME = 0.01  # nats per token: a whole cut that does less has no damage to take apart
_TALL = 40  # rows of a map, above which they are lower and say nothing


def part_reports(parts: Sequence[Part], measures: Measures, ties: Ties) -> dict[str, dict[str, PartsReport]]:
    """Turn what was measured of parts into their entries of the report, by variant and by what they are parts by."""
    grouped: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        grouped.setdefault((part.variant, part.by), []).append(part)
    result: dict[str, dict[str, PartsReport]] = {}
    for (variant, by), those in grouped.items():
        base = measures["base"]
        sums = {code: _added([measures[part.name][code] for part in those], base[code]) for code in base}
        interval = change_interval({code: (None, together) for code, together in sums.items()})
        entries = {part.label: _part(part, measures, ties) for part in those}
        result.setdefault(variant, {})[by] = PartsReport(
            parts=entries,
            sum_nats=math.fsum(entry.nats for entry in entries.values()),
            whole_nats=geometric_mean(measures[variant]) - geometric_mean(base),
            **{f"sum_{end}": value for end, value in bounds(interval).items()},
        )
    return result


def _part(part: Part, measures: Measures, ties: Ties) -> PartReport:
    nats = geometric_mean(measures[part.name]) - geometric_mean(measures["base"])
    ends = mean_ratio_bounds(measures, part.name)
    return PartReport(entries=part.entries(ties), ratio_to_base=exponential(nats), nats=nats, **ends)


def _added(parts: Sequence[Measure], base: Measure) -> Sums:
    """Return what all parts cost together, in nats by piece of text."""
    totals = [math.fsum(part.pieces[i][0] - nll for part in parts) for i, (nll, _) in enumerate(base.pieces)]
    return Sums(tuple(totals), base.sums.weights)


def part_lines(report: Report) -> list[str]:
    """Say of each variant what its parts do one at a time, and how much of the whole that explains."""
    lines = []
    for variant, by_axis in report.parts.items():
        whole, name = next(iter(by_axis.values())).whole_nats, report.named(variant)
        if whole < _SAME:
            lines.append(f"{name}: the whole cut does hardly any damage (less than {_SAME} nats per token)")
        else:
            lines += [f"{name}, one {by} at a time: {_explained(by, taken)}" for by, taken in by_axis.items()]
    return lines


def _explained(by: str, taken: PartsReport) -> str:
    nats = {label: part.nats for label, part in taken.parts.items()}
    worst = max(nats, key=lambda label: math.inf if math.isnan(nats[label]) else nats[label])
    most = f"most at {_called(by, worst)} (×{number(taken.parts[worst].ratio_to_base)})"
    if not (math.isfinite(taken.whole_nats) and math.isfinite(taken.sum_nats)):
        return f"{most}; what is not a number cannot be added up"
    interval = ""
    if taken.sum_low is not None and taken.sum_high is not None:
        interval = f" (interval {_nats(taken.sum_low)} to {_nats(taken.sum_high)})"
    share = taken.sum_nats / taken.whole_nats
    said = (
        f"{most}; added up, the parts explain {_nats(taken.sum_nats)}{interval} of the whole cut's "
        f"{_nats(taken.whole_nats)} nats per token, {100 * share:.0f} %"
    )
    if share > 1.1:
        return f"{said}: single parts do the same damage"
    return f"{said}: the rest comes from cutting them together" if share < 0.9 else said


def _called(by: str, label: str) -> str:
    return f"layer {label}" if by == "layer" and label.isdigit() else label


def _nats(value: float) -> str:
    sign = "\u2212" if value < 0 else ""
    return f"{sign}{abs(value):.3g}"


def part_figures(report: Report) -> list[Figure]:
    """Draw a map for layers and one for roles: parts down, variants across, the multiple of the base's perplexity."""
    return [_map(report, by, taken) for by, taken in _by_axis(report).items()]


def _by_axis(report: Report) -> dict[str, dict[str, PartsReport]]:
    """Return the parts by what they are parts by, and then by variant."""
    axes = dict.fromkeys(by for by_axis in report.parts.values() for by in by_axis)
    return {by: {name: taken[by] for name, taken in report.parts.items() if by in taken} for by in axes}


def _labels(taken: Mapping[str, PartsReport]) -> list[str]:
    """Return the parts of all variants, in the order of the model."""
    return sorted({label for one in taken.values() for label in one.parts}, key=place_of)


def _map(report: Report, by: str, taken: Mapping[str, PartsReport]) -> Figure:
    labels, guess, rows = _labels(taken), report.guessing(), []
    for variant, one in taken.items():
        for label, part in one.parts.items():
            said = number(part.ratio_to_base)
            rows.append({
                "part": _called(by, label), "variant": report.named(variant), "said": said, "times": f"×{said}",
                "interval": f"×{interval(part.low, part.high)}", "entries": f"{part.entries:,}", "nats": part.nats
                if math.isfinite(part.nats) else said, **RATIOS.of(part.ratio_to_base, is_lost(part.nats, guess)),
            })  # fmt: skip
    variants = [report.named(variant) for variant in taken]
    tall, longest = len(labels) > _TALL, max(map(len, variants))
    wide = max(50, 7 * longest + 10)
    level = wide * len(variants) <= 250  # as a phone is
    hover = tips(part=by, variant="variant", times="of the base's perplexity", interval="interval", entries="entries")
    axes = heads("variant", variants, level), named("part", [_called(by, label) for label in labels])
    steps = (wide if level else 50, 11 if tall else 20)
    spec = colour_map(rows, axes, steps, cells(rows, RATIOS, hover, not tall))
    text = (
        f"Each cut done in one {by} alone, and nowhere else: perplexity as a multiple of the base's, geometric mean "
        "over the languages. The warmer the worse; grey is within 1 % of the base."
    )
    return Figure(f"parts-{by}", f"Where it breaks, by {by}", text, finished(spec))


def part_tables(report: Report) -> list[Grid]:
    """Show the parts, a table for layers and one for roles: entries and the ratio to the base, by variant."""
    grids = []
    for by, taken in _by_axis(report).items():
        rows = []
        for label in _labels(taken):
            cells = [cell for one in taken.values() for cell in _shown(one.parts.get(label))]
            rows.append(Row([Cell(_called(by, label)), *cells]))
        heads, foot = [by], [Cell("the whole cut")]
        for variant, one in taken.items():
            heads += [f"{report.named(variant)}, entries", f"{report.named(variant)}, ×\u00a0base"]
            foot += [Cell(""), Cell(number(exponential(one.whole_nats)), one.whole_nats)]
        note = "Each is the cut in that part alone; the last line is the whole cut, all parts together."
        grids.append(Grid(f"One {by} at a time", tuple(heads), rows, note, foot=foot))
    return grids


def _shown(part: PartReport | None) -> list[Cell]:
    if part is None:
        return [Cell("-"), Cell("-")]
    note = "" if part.low is None else f"interval {interval(part.low, part.high)}"
    return [Cell(f"{part.entries:,}", part.entries), replace(times_cell(part.ratio_to_base, part.nats), note=note)]
