"""What was measured, as entries of the report: perplexities, ratios with intervals, every measurement, seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from surgeon.measure.uncertainty import Interval, change_interval, effective, probability, survives
from surgeon.measure.words import Words
from surgeon.model.results import PERPLEXITY, Measure, Quantity, Sums, Verification, exponential, geometric_mean
from surgeon.recipe.sweeps import Sweep
from surgeon.report.entries import (
    Figure,
    MeasurementReport,
    OverSeeds,
    PassageReport,
    Perplexity,
    Summary,
    SweepReport,
)
from surgeon.report.words import count, number

if TYPE_CHECKING:
    from surgeon.measure.base import Measurement

Measures: TypeAlias = Mapping[str, Mapping[str, Measure]]  # by model, then by language
Groups: TypeAlias = Mapping[str, Mapping[str, Sums]]  # of one model: by group, then by quantity
Pairs: TypeAlias = Mapping[str, tuple[Sums | None, Sums]]  # by group: the base's, where there is one, and a model's


def perplexity(measure: Measure, interval: Interval | None = None) -> Perplexity:
    """Turn a measure, and the interval of its logarithm's difference to the base's, into its entry of the report."""
    values = {name: getattr(measure, name) for name in Perplexity.model_fields if hasattr(measure, name)}
    return Perplexity(**values, **bounds(interval, exponential))


def perplexities(measures: Measures, base: str = "base") -> dict[str, dict[str, Perplexity]]:
    """Turn all measures into their entries, with the intervals of their ratios to one of them."""
    return {
        name: {
            language: perplexity(
                item,
                None if name == base else change_interval({language: (measures[base][language].sums, item.sums)}),
            )
            for language, item in by_language.items()
        }
        for name, by_language in measures.items()
    }


def bounds(interval: Interval | None, shown: Callable[[float], float] = float) -> dict[str, float]:
    """Return the bounds of an interval as an entry has them; nothing where there is none."""
    return {} if interval is None else {"low": shown(interval.low), "high": shown(interval.high)}


def mean_ratio_bounds(measures: Measures, name: str) -> dict[str, float]:
    """Return the bounds of the ratio of a model's geometric mean perplexity to the base's; none of the base."""
    pairs = {code: (item.sums, measures[name][code].sums) for code, item in measures["base"].items()}
    return bounds(None if name == "base" else change_interval(pairs), exponential)


def measurement_reports(
    verification: Verification, measurements: Sequence[Measurement]
) -> dict[str, MeasurementReport]:
    """Turn the figures of all measurements into their entries, with intervals, and beside the base's."""
    reports = {}
    for item in measurements:
        by_model, quantities = _by_model(verification, item.kind), _quantities(verification, item)
        if not by_model or not quantities:
            continue
        figures: dict[str, dict[str, dict[str, Figure]]] = {}
        overall: dict[str, dict[str, Figure]] = {}
        for name, groups in by_model.items():
            figures[name] = {group: {} for group in groups}
            pairs = {quantity.name: _pairs(by_model, name, quantity) for quantity in quantities}
            for quantity in quantities:
                for group, figure in _tested(quantity, pairs[quantity.name]).items():
                    figures[name][group][quantity.name] = figure
            if item.has_mean:
                overall[name] = {q.name: _figure(q, pairs[q.name]) for q in quantities if pairs[q.name]}
        reports[item.kind] = MeasurementReport(
            title=item.description,
            by=item.grouped_by,
            quantities=quantities,
            found=figures,
            overall=overall,
            remarks=_remarks(verification, item.kind),
        )
    return reports


def _by_model(verification: Verification, kind: str) -> dict[str, Groups]:
    """Return what a measurement found, by model."""
    if kind != PERPLEXITY:
        return {name: by_kind[kind].groups for name, by_kind in verification.figures.items() if kind in by_kind}
    return {
        name: {language: {PERPLEXITY: item.sums} for language, item in by_language.items()}
        for name, by_language in verification.measures.items()
    }


def _quantities(verification: Verification, item: Measurement) -> list[Quantity]:
    """Return what a measurement tells; where it says so with its figures, what it told of any model."""
    figures = (by_kind[item.kind] for by_kind in verification.figures.values() if item.kind in by_kind)
    with_them = {quantity.name: quantity for one in figures for quantity in one.quantities}
    return [*item.quantities(), *with_them.values()]


def _remarks(verification: Verification, kind: str) -> dict[str, dict[str, str]]:
    remarks = {
        name: {group: text for group, text in by_kind[kind].remarks.items() if text}
        for name, by_kind in verification.figures.items()
        if kind in by_kind
    }
    return {name: by_group for name, by_group in remarks.items() if by_group}


def _pairs(by_model: Mapping[str, Groups], name: str, quantity: Quantity) -> Pairs:
    """Return a model's sums of one quantity, by group, each with the base's that it is compared with."""
    base: Groups = {} if name == "base" or quantity.compare == "base" else by_model.get("base", {})
    return {
        group: (base.get(group, {}).get(quantity.name), by_name[quantity.name])
        for group, by_name in by_model[name].items()
        if quantity.name in by_name
    }


def _figure(quantity: Quantity, pairs: Pairs) -> Figure:
    """Return the figure of a group, or the mean over several: of logarithms where the comparison is a ratio."""
    shown = exponential if quantity.compare == "ratio" else float
    bases = [base.value for base, _ in pairs.values() if base is not None]
    value = math.fsum(sums.value for _, sums in pairs.values()) / len(pairs)
    compared = len(bases) == len(pairs)
    # The interval of a perplexity alone says nothing of a model.
    interval = None if quantity.compare == "ratio" and not compared else change_interval(pairs)
    return Figure(
        value=shown(value),
        pieces=sum(len(sums.weights) for _, sums in pairs.values()),
        change=shown(value - math.fsum(bases) / len(bases)) if compared else None,
        **bounds(interval, shown),
    )


def _tested(quantity: Quantity, pairs: Pairs) -> dict[str, Figure]:
    """Return the figure of each group, and say of all their changes which are more than chance."""
    chances = {group: None if base is None else probability(base, sums) for group, (base, sums) in pairs.items()}
    beyond = dict(zip(chances, survives(list(chances.values())), strict=True))
    return {
        group: _figure(quantity, {group: pair}).model_copy(
            update={
                "effective": round(effective(pair[1]), 1),
                "p": chances[group],
                "beyond_chance": None if chances[group] is None else beyond[group],
            }
        )
        for group, pair in pairs.items()
    }


def passages(verification: Verification) -> dict[str, PassageReport]:
    """Return the passages that were looked at word by word, by language."""
    result: dict[str, PassageReport] = {}
    for name, by_kind in verification.figures.items():
        for sample in by_kind[Words.kind].samples if Words.kind in by_kind else ():
            losses = {name: [None if loss is None else round(loss, 3) for loss in sample["losses"]]}
            known = result.get(sample["language"])
            result[sample["language"]] = (
                PassageReport(tokens=sample["tokens"], words=sample["words"], losses=losses)
                if known is None
                else known.model_copy(update={"losses": known.losses | losses})
            )
    return result


def sweep_report(sweep: Sweep, summary: Mapping[str, Summary]) -> SweepReport:
    """Turn a sweep, and what its points were measured to be, into its entry of the report."""
    return SweepReport(
        axes={name: list(values) for name, values in sweep.axes.items()},
        points={variant: list(values) for variant, values in sweep.points.items()},
        over_seeds=_over_seeds(sweep, summary) if "seed" in sweep.axes else [],
    )


def _over_seeds(sweep: Sweep, summary: Mapping[str, Summary]) -> list[OverSeeds]:
    at = list(sweep.axes).index("seed")
    groups: dict[str, tuple[list[Any], list[str]]] = {}  # by what stands for the values, which need not be hashable
    for point, values in sweep.points.items():
        others = [*values[:at], *values[at + 1 :]]
        groups.setdefault(repr(others), (others, []))[1].append(point)
    result = []
    for others, points in groups.values():
        if all(point in summary for point in points):
            ratios = [summary[point].ratio_to_base for point in points]
            logs = [summary[point].log_geometric_mean_perplexity for point in points]
            mean = exponential(math.fsum(logs) / len(logs) - summary["base"].log_geometric_mean_perplexity)
            result.append(OverSeeds(values=others, points=points, mean=mean, low=min(ratios), high=max(ratios)))
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
            **mean_ratio_bounds(measures, name),
        )
    return result


def first_finding(measures: Measures, sweeps: Mapping[str, Sweep]) -> str:
    """Say in one line what became of each model, as soon as it is measured; the points of a sweep together."""
    base, languages = geometric_mean(measures["base"]), count(len(measures["base"]), "language")
    logs = {name: geometric_mean(by_language) - base for name, by_language in measures.items() if name != "base"}
    points = {point for sweep in sweeps.values() for point in sweep.points}
    lines = [f"{name} {number(exponential(log))}" for name, log in logs.items() if name not in points]
    for name, sweep in sweeps.items():
        ratios = [exponential(logs[point]) for point in sweep.points if point in logs]
        if ratios:
            ends = " to ".join(dict.fromkeys(map(number, (min(ratios), max(ratios)))))
            lines.append(f"{name} {ends} at {count(len(ratios), 'point')}")
    if not lines:
        return f"the base is measured in {languages}"
    return f"perplexity as a multiple of the base's, mean of {languages}: {', '.join(lines)}"
