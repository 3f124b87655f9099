"""What was measured, as entries of the report: perplexities, ratios with their intervals, seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from surgeon.measure.chance import effective, probability, survives
from surgeon.measure.intervals import (
    Interval,
    change_interval,
    language_interval,
    mean_change_interval,
    mean_interval,
)
from surgeon.model.results import PERPLEXITY, Measure, Quantity, Sums, Verification, exponential, geometric_mean
from surgeon.recipe.sweeps import Sweep
from surgeon.report.measured_entries import (
    Figure,
    MeasurementReport,
    OverSeeds,
    Perplexity,
    Summary,
    SweepReport,
)
from surgeon.report.words import count, number

if TYPE_CHECKING:
    from surgeon.measure.base import Measurement

Measures: TypeAlias = Mapping[str, Mapping[str, Measure]]  # by model, then by language
Groups: TypeAlias = Mapping[str, Mapping[str, Sums]]  # of one model: by group, then by quantity


def perplexity(measured: Measure, interval: Interval | None = None) -> Perplexity:
    """Turn a measure, and the interval of its ratio to the base, into its entry of the report."""
    found = {name: getattr(measured, name) for name in Perplexity.model_fields if hasattr(measured, name)}
    return Perplexity(**found, **_bounds(interval))


def perplexities(measures: Measures, base: str = "base") -> dict[str, dict[str, Perplexity]]:
    """Turn all measures into their entries, with the intervals of their ratios to one of them."""
    return {
        name: {
            language: perplexity(
                item,
                None if name == base else language_interval(measures[base][language].pieces, item.pieces, language),
            )
            for language, item in by_language.items()
        }
        for name, by_language in measures.items()
    }


def _bounds(interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {"low": interval.low, "high": interval.high}


def mean_ratio_interval(measures: Measures, name: str) -> Interval | None:
    """Return the interval of the ratio of a model's geometric mean perplexity to the base's; None for the base."""
    base, other = ({code: item.pieces for code, item in measures[key].items()} for key in ("base", name))
    return None if name == "base" else mean_interval(base, other)


def measurement_reports(found: Verification, made: Sequence[Measurement]) -> dict[str, MeasurementReport]:
    """Turn the figures of all measurements into their entries, with intervals, and beside the base's."""
    reports = {}
    for item in made:
        by_model = _by_model(found, item.kind)
        quantities = _quantities(found, item)
        table = {
            name: {
                group: {
                    quantity.name: _figure(
                        quantity, group, by_name[quantity.name], _of_base(by_model, name, group, quantity)
                    )
                    for quantity in quantities
                    if quantity.name in by_name
                }
                for group, by_name in groups.items()
            }
            for name, groups in by_model.items()
        }
        overall = {
            name: {
                quantity.name: _overall(quantity, by_model, name)
                for quantity in quantities
                if any(quantity.name in by_name for by_name in groups.values())
            }
            for name, groups in by_model.items()
            if item.has_mean
        }
        if table and quantities:
            reports[item.kind] = MeasurementReport(
                title=item.description,
                by=item.grouped_by,
                quantities=list(quantities),
                found={name: _marked(groups) for name, groups in table.items()},
                overall=overall,
                remarks=_remarks(found, item.kind),
            )
    return reports


def _quantities(found: Verification, item: Measurement) -> list[Quantity]:
    """Return what a measurement tells; where it says so with its figures, what it told of any model."""
    figures = (by_kind[item.kind] for by_kind in found.figures.values() if item.kind in by_kind)
    with_them = {quantity.name: quantity for one in figures for quantity in one.quantities}
    return [*item.quantities(), *with_them.values()]


def _remarks(found: Verification, kind: str) -> dict[str, dict[str, str]]:
    said = {name: by_kind[kind].remarks for name, by_kind in found.figures.items() if kind in by_kind}
    kept = {name: {group: text for group, text in by_group.items() if text} for name, by_group in said.items()}
    return {name: by_group for name, by_group in kept.items() if by_group}


def _by_model(found: Verification, kind: str) -> dict[str, Groups]:
    if kind != PERPLEXITY:
        return {name: by_kind[kind].groups for name, by_kind in found.figures.items() if kind in by_kind}
    return {
        name: {
            language: {PERPLEXITY: Sums(tuple(nll for nll, _ in item.pieces), tuple(float(n) for _, n in item.pieces))}
            for language, item in by_language.items()
        }
        for name, by_language in found.measures.items()
    }


def _of_base(by_model: Mapping[str, Groups], name: str, group: str, quantity: Quantity) -> Sums | None:
    if name == "base" or quantity.compare == "base":
        return None
    return by_model.get("base", {}).get(group, {}).get(quantity.name)


def _figure(quantity: Quantity, group: str, found: Sums, base: Sums | None) -> Figure:
    shown = exponential if quantity.compare == "ratio" else float
    alone = base is None and quantity.compare == "ratio"  # the interval of a perplexity says nothing of a model
    bounds = None if alone else change_interval(base, found, group)
    return Figure(
        value=shown(found.value),
        pieces=len(found.weights),
        effective=round(effective(found), 1),
        change=None if base is None else shown(found.value - base.value),
        p=None if base is None else probability(base, found),
        **_shown(bounds, shown),
    )


def _marked(table: Mapping[str, Mapping[str, Figure]]) -> dict[str, dict[str, Figure]]:
    """Mark, of all groups of a variant, the changes that are more than chance, each quantity by itself."""
    marked = {group: dict(by_name) for group, by_name in table.items()}
    for name in dict.fromkeys(name for by_name in table.values() for name in by_name):
        groups = [group for group, by_name in table.items() if name in by_name and by_name[name].p is not None]
        for group, beyond in zip(groups, survives([table[group][name].p for group in groups]), strict=True):
            marked[group][name] = table[group][name].model_copy(update={"beyond_chance": beyond})
    return marked


def _overall(quantity: Quantity, by_model: Mapping[str, Groups], name: str) -> Figure:
    shown = exponential if quantity.compare == "ratio" else float
    pairs = {
        group: (_of_base(by_model, name, group, quantity), by_name[quantity.name])
        for group, by_name in by_model[name].items()
        if quantity.name in by_name
    }
    bases = [base for base, _ in pairs.values() if base is not None]
    value = math.fsum(found.value for _, found in pairs.values()) / len(pairs)
    compared = len(bases) == len(pairs)
    bounds = None if quantity.compare == "ratio" and not compared else mean_change_interval(pairs)
    change = shown(value - math.fsum(base.value for base in bases) / len(bases)) if compared else None
    pieces = sum(len(found.weights) for _, found in pairs.values())
    return Figure(value=shown(value), pieces=pieces, change=change, **_shown(bounds, shown))


def _shown(interval: Interval | None, shown: Callable[[float], float]) -> dict[str, float]:
    return {} if interval is None else {"low": shown(interval.low), "high": shown(interval.high)}


def sweep_report(sweep: Sweep, summary: Mapping[str, Summary]) -> SweepReport:
    """Turn a sweep, and what its points were measured to be, into its entry of the report."""
    return SweepReport(
        axes={name: list(values) for name, values in sweep.axes.items()},
        points={variant: list(values) for variant, values in sweep.points.items()},
        over_seeds=_over_seeds(sweep, summary) if "seed" in sweep.axes else [],
    )


def _over_seeds(sweep: Sweep, summary: Mapping[str, Summary]) -> list[OverSeeds]:
    at = list(sweep.axes).index("seed")
    groups: list[tuple[tuple[Any, ...], list[str]]] = []  # values need not be hashable
    for point, values in sweep.points.items():
        others = (*values[:at], *values[at + 1 :])
        group = next((points for known, points in groups if known == others), None)
        if group is None:
            groups.append((others, [point]))
        else:
            group.append(point)
    result = []
    for others, points in groups:
        if all(point in summary for point in points):
            ratios = [summary[point].ratio_to_base for point in points]
            logs = [summary[point].log_geometric_mean_perplexity for point in points]
            mean = exponential(math.fsum(logs) / len(logs) - summary["base"].log_geometric_mean_perplexity)
            result.append(OverSeeds(values=list(others), points=points, mean=mean, low=min(ratios), high=max(ratios)))
    return result


def summarize(measures: Measures) -> dict[str, Summary]:
    """Summarize each model over its languages, beside `base`."""
    base = geometric_mean(measures["base"])
    result = {}
    for name, by_language in measures.items():
        log = geometric_mean(by_language)
        result[name] = Summary(
            geometric_mean_perplexity=exponential(log),
            log_geometric_mean_perplexity=log,
            ratio_to_base=exponential(log - base),
            **_bounds(mean_ratio_interval(measures, name)),
        )
    return result


def first_finding(measures: Measures, sweeps: Mapping[str, Sweep]) -> str:
    """Say in one line what became of each model, as soon as it is measured; the points of a sweep together."""
    ratios = {name: item.ratio_to_base for name, item in summarize(measures).items() if name != "base"}
    swept = {name: [ratios[point] for point in sweep.points if point in ratios] for name, sweep in sweeps.items()}
    points = {point for sweep in sweeps.values() for point in sweep.points}
    found = [f"{name} {number(value)}" for name, value in ratios.items() if name not in points]
    found += [
        f"{name} {' to '.join(dict.fromkeys(map(number, (min(values), max(values)))))} at {count(len(values), 'point')}"
        for name, values in swept.items() if values
    ]  # fmt: skip
    languages = count(len(measures["base"]), "language")
    if not found:
        return f"the base is measured in {languages}"
    return f"perplexity as a multiple of the base's, mean of {languages}: {', '.join(found)}"
