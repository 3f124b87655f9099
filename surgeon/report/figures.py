"""The figures of a report: perplexity per language, and where each region stands. Drawn from the report alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from surgeon.checkpoint.naming import ROLES
from surgeon.report.data import CellCount, Perplexity, RegionReport, Report
from surgeon.report.svg import (
    OVERFLOW,
    WIDTH,
    Bar,
    Figure,
    HeatCell,
    bars,
    gutter,
    heatmap,
    legend,
    line,
    log_ticks,
    marker,
    text,
)
from surgeon.report.sweeps import sweep_figure
from surgeon.report.words import from_log, language, language_name, number, percent

ORDERS = ("script", "family", "effect")
_ROW = 21.0


def figures(report: Report) -> list[Figure]:
    """Return all figures that the report has data for, under the names of their files."""
    result = []
    if report.perplexity:
        alone = report.only(report.measured_alone)
        result += [perplexity_figure(alone, order) for order in ORDERS]
        if len(alone.perplexity) > 1:
            result.append(ratio_figure(alone))
        result += [sweep_figure(report, name) for name in report.sweeps]
    for name, region in report.regions.items():
        result += region_figures(name, region)
    return result


def language_groups(report: Report, order: str) -> list[tuple[str, list[str]]]:
    """Arrange the languages: by script or family in named groups, or in one group by the largest effect."""
    codes = list(report.perplexity["base"])
    if order == "effect":
        return [("by effect", sorted(codes, key=lambda code: (-_effect(report, code), language_name(code))))]
    groups: dict[str, list[str]] = {}
    for code in sorted(codes, key=language_name):
        groups.setdefault(getattr(language(code), order), []).append(code)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def log_ratio(report: Report, variant: str, code: str) -> float:
    """Return the natural logarithm of a variant's perplexity over the base's."""
    return report.perplexity[variant][code].log_perplexity - report.perplexity["base"][code].log_perplexity


def _effect(report: Report, code: str) -> float:
    ratios = [abs(log_ratio(report, variant, code)) for variant in report.perplexity if variant != "base"]
    return max((math.inf if math.isnan(ratio) else ratio for ratio in ratios), default=0.0)


def perplexity_figure(report: Report, order: str) -> Figure:
    """Draw the perplexity of base and variants, a line per language, on a logarithmic scale."""
    models = list(report.perplexity)
    groups = language_groups(report, order)
    key, top = legend(models, 0)
    left = gutter(language_name(code) for code in report.perplexity["base"])
    scale, ticks = _log_scale(report, left)
    titled = order != "effect"
    height = top + 24 + sum(_ROW * len(codes) + (24 if titled else 0) for _, codes in groups) + 8
    parts = [key]
    for value in ticks:
        x = scale(math.log(value))
        parts += [line(x, top + 20, x, height - 8, "grid"), text(x, top + 14, f"{value:,.0f}", "middle", "quiet")]
    y = top + 24
    for title, codes in groups:
        if titled:
            parts.append(text(0, y + 17, title[0].upper() + title[1:], kind="group quiet"))
            y += 24
        for code in codes:
            parts += _language_row(report, code, left, y + _ROW / 2, scale)
            y += _ROW
    mean = report.summary["base"].geometric_mean_perplexity
    whose = "the base" if len(models) == 1 else f"{len(models)} models"
    description = (
        f"Perplexity of {whose} over {len(report.perplexity['base'])} languages, logarithmic scale. "
        f"Geometric mean of the base: {number(mean)}. The table holds all figures."
    )
    name = "perplexity" if order == "script" else f"perplexity-by-{order}"
    return Figure(name, f"Perplexity per language, by {order}", description, height, "".join(parts))


def _language_row(report: Report, code: str, left: float, y: float, scale: Callable[[float], float]) -> list[str]:
    points = [
        (i, name, row[code], _position(row[code], scale)) for i, (name, row) in enumerate(report.perplexity.items())
    ]
    places = [x for _, _, _, x in points]
    parts = [text(left - 8, y + 4.5, language_name(code), "end"), line(min(places), y, max(places), y, "link")]
    # The base is drawn last: where a variant changes nothing, it is the base that should be seen.
    for i, name, found, x in reversed(points):
        parts.append(marker(x, y, i, f"{language_name(code)}, {name}: {number(found.perplexity)}"))
        if not math.isfinite(found.log_perplexity) or found.log_perplexity > OVERFLOW:
            parts.append(text(x - 9, y + 4.5, number(found.perplexity), "end", "small"))
    return parts


def _position(found: Perplexity, scale: Callable[[float], float]) -> float:
    value = found.log_perplexity
    return scale(value if math.isfinite(value) and value < OVERFLOW else OVERFLOW + 1)


def _log_scale(report: Report, left: float) -> tuple[Callable[[float], float], list[float]]:
    """Return a map from log-perplexity to x, and round values to mark."""
    values = [item.log_perplexity for row in report.perplexity.values() for item in row.values()]
    usable = [value for value in values if math.isfinite(value) and value < OVERFLOW] or [0.0]
    low, high = min(usable), max(usable)
    low, high = low - 0.03 * (high - low) - 0.05, high + 0.03 * (high - low) + 0.05
    right = WIDTH - 14 - (30 if len(usable) < len(values) else 0)

    def scale(value: float) -> float:
        if value > OVERFLOW:
            return WIDTH - 10
        return left + (value - low) / (high - low) * (right - left)

    return scale, log_ticks(low, high)


def ratio_figure(report: Report) -> Figure:
    """Draw how many times each variant's perplexity is the base's, language by variant."""
    variants = [name for name in report.perplexity if name != "base"]
    codes = [code for _, codes in language_groups(report, "script") for code in codes]
    logs = {(v, c): log_ratio(report, v, c) for v in variants for c in codes}
    finite = [abs(value) for value in logs.values() if math.isfinite(value)]
    # Noise must not look like an effect: a factor of two is the least that takes the full colour.
    full = max([math.log(2), *(min(value, 7.0) for value in finite)])

    def cell(variant: str, code: str) -> HeatCell:
        value = logs[variant, code]
        ratio = from_log(value)
        level = abs(value) / full if math.isfinite(value) else 1.0
        tip = f"{language_name(code)}, {variant}: {number(ratio)} times the base's perplexity"
        return HeatCell(level, number(ratio), tip, "help" if value < 0 else "hurt")

    worst = max(logs, key=lambda key: math.inf if math.isnan(logs[key]) else logs[key])
    return heatmap(
        "ratios",
        "Perplexity as a multiple of the base's",
        f"Languages by variants. The strongest effect is that of {worst[0]} on {language_name(worst[1])}.",
        [language_name(code) for code in codes],
        variants,
        [[cell(variant, code) for variant in variants] for code in codes],
        "times the base's perplexity; red: worse, blue: better",
    )


def region_figures(name: str, region: RegionReport) -> list[Figure]:
    """Draw where a region stands: density and crowding by layer and role, by role, and by residual dimension."""
    result = []
    if any(cell.layer is not None for cell in region.cells):
        densest = max(cell.entries / cell.numel for cell in region.cells)
        result.append(
            _layer_heatmap(f"{name}-density", f"{name}: density by role and layer", region, _density, densest)
        )
        if any(cell.rows is not None for cell in region.cells if cell.layer is not None):
            title = f"{name}: share of the entries in the fullest 1 % of "
            result.append(_layer_heatmap(f"{name}-rows", title + "rows", region, lambda cell: cell.rows, None))
            result.append(_layer_heatmap(f"{name}-columns", title + "columns", region, lambda cell: cell.columns, None))
    if region.spreads:
        result.append(_spread_figure(name, region))
    if region.dimensions:
        result.append(_dimension_figure(name, region))
    return result


def _density(cell: CellCount) -> float:
    return cell.entries / cell.numel


def roles_in_order(roles: Sequence[str]) -> list[str]:
    """Sort roles as a layer has them: attention, MLP, norms, then what is outside."""
    return sorted(set(roles), key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))


def _layer_heatmap(
    name: str, title: str, region: RegionReport, value: Callable[[CellCount], float | None], full: float | None
) -> Figure:
    inside = {(cell.role, cell.layer): cell for cell in region.cells if cell.layer is not None}
    layers = sorted({layer for _, layer in inside if layer is not None})
    values = {key: value(cell) for key, cell in inside.items()}
    known = [item for item in values.values() if item is not None]
    roles = [role for role in roles_in_order([role for role, _ in inside]) if any(
        values.get((role, layer)) is not None for layer in layers
    )]  # fmt: skip
    full = full or max(known, default=1.0) or 1.0

    def cell(role: str, layer: int) -> HeatCell | None:
        item = values.get((role, layer))
        if item is None:
            return None
        counted = inside[role, layer]
        tip = f"layer {layer}, {role}: {percent(item)} ({counted.entries:,} of {counted.numel:,} entries selected)"
        return HeatCell(item / full, f"{100 * item:.2g}", tip)

    highest = max((key for key in values if values[key] is not None), key=lambda key: values[key] or 0.0)
    where = f"{highest[0]} of layer {highest[1]}"
    description = f"Roles by layers, in per cent. Highest: {percent(values[highest] or 0.0)} in {where}."
    axis = f"layer; cells in per cent, full colour at {percent(full)}"
    cells = [[cell(role, layer) for layer in layers] for role in roles]
    return heatmap(name, title, description, roles, [str(layer) for layer in layers], cells, axis)


def _spread_figure(name: str, region: RegionReport) -> Figure:
    at = region.spread_at.index(0.01)
    groups = []
    for role in roles_in_order(list(region.spreads)):
        spread = region.spreads[role]
        values = (("rows", spread.rows[at], 1), ("columns", spread.columns[at], 2))
        groups.append((role, [Bar(v, series, f"{axis} {percent(v)}") for axis, v, series in values]))
    longest = max(bar.length for _, group in groups for bar in group)
    scale = max(longest, 0.05)
    scaled = [(role, [Bar(bar.length / scale, bar.series, bar.label) for bar in group]) for role, group in groups]
    return bars(
        f"{name}-spread",
        f"{name}: how far entries crowd into few rows and columns",
        "Share of each role's entries that the fullest 1 % of the rows and of the columns of its matrices hold. "
        "Spread evenly, it would be 1 %.",
        scaled,
        (0.01 / scale, "1 %: spread evenly"),
    )


def _dimension_figure(name: str, region: RegionReport, shown: int = 16) -> Figure:
    chosen = region.dimensions[:shown]
    hits = sum(cell.entries for cell in region.cells)
    slots = sum(cell.numel for cell in region.cells)
    mean = hits / slots if slots else 0.0
    densities = [item.hits / item.slots for item in chosen]
    scale = max(*densities, 2 * mean, 1e-12) if len(densities) > 1 else max(densities[0], 2 * mean)
    groups = [
        (
            f"{item.index}",
            [Bar(density / scale, 1, f"{percent(density)}, {item.tensors} tensor{'' if item.tensors == 1 else 's'}")],
        )
        for item, density in zip(chosen, densities, strict=True)
    ]
    return bars(
        f"{name}-dimensions",
        f"{name}: residual dimensions that hold most entries",
        f"Share of each dimension's entries that are selected, and in how many tensors the dimension is among the "
        f"fullest 1 %. The fullest dimension is {chosen[0].index}, with {chosen[0].hits:,} of {chosen[0].slots:,}.",
        groups,
        (mean / scale, f"{percent(mean)}: the region's mean"),
    )
