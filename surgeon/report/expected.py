"""Whether what came out is what the recipe expects, and how that is said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from surgeon.model.results import Quantity, exponential
from surgeon.recipe.schema import ExpectSpec
from surgeon.report.data import Report
from surgeon.report.entries import Expectation, MeasurementReport, Perplexity, Summary
from surgeon.report.words import bounds, exactly, quantity_text


def check_expectations(
    expect: Sequence[ExpectSpec],
    perplexity: Mapping[str, Mapping[str, Perplexity]],
    summary: Mapping[str, Summary],
    reports: Mapping[str, MeasurementReport],
) -> list[Expectation]:
    """Compare what was measured with what the recipe expects; a figure that is not a number fails any bound.

    So does a bound that is to hold `at` one of an interval, where there is too little text for an interval.

    Args:
        expect: the bounds.
        perplexity: by model and language, which ratios are of.
        summary: the same by model, over all languages.
        reports: all other measurements, by kind.
    """
    result = []
    for item in expect:
        given = item.model_dump(exclude={"quantity"})
        if item.measurement is None:
            ratio = _ratio(item, perplexity, summary)
            passed = _within(ratio, item.ratio_at_least, item.ratio_at_most)
            result.append(Expectation(**given, ratio=ratio, passed=passed))
        else:
            quantity, value = _figure(item, reports.get(item.measurement))
            passed = _within(value, *_asked(item))
            result.append(Expectation(**given, ratio=None, quantity=quantity, value=value, passed=passed))
    return result


def _within(value: float, at_least: float | None, at_most: float | None) -> bool:
    low, high = -math.inf if at_least is None else at_least, math.inf if at_most is None else at_most
    return low <= value <= high  # nan is not


def _asked(item: ExpectSpec | Expectation) -> tuple[float | None, float | None]:
    """Return the bounds, of the value or of the change: never of both."""
    if item.at_least is None and item.at_most is None:
        return item.change_at_least, item.change_at_most
    return item.at_least, item.at_most


def _figure(item: ExpectSpec, report: MeasurementReport | None) -> tuple[Quantity | None, float]:
    """Return the quantity that an expectation is of, and what came out; None and nan if there is none."""
    quantities = report.quantities if report is not None else []
    quantity = next((one for one in quantities if item.quantity in (None, one.name)), None)
    if report is None or quantity is None:
        return None, math.nan
    group = item.language if item.language is not None else item.group
    by_group = report.found.get(item.variant, {})
    by_name = report.overall.get(item.variant, {}) if group is None else by_group.get(group, {})
    figure = by_name.get(quantity.name)
    if figure is None:
        return None, math.nan
    point = figure.change if item.of_change else figure.value
    # An interval is that of the change, and of a value that has none.
    held = item.of_change or figure.change is None
    value = point if item.at == "point" else (figure.low if item.at == "lower" else figure.high) if held else None
    return quantity, math.nan if value is None else value


def _ratio(
    item: ExpectSpec, perplexity: Mapping[str, Mapping[str, Perplexity]], summary: Mapping[str, Summary]
) -> float:
    """Return the ratio to the base's perplexity, or a bound of its interval; nan if there is none."""
    entry: Perplexity | Summary
    if item.language is None:
        entry = summary[item.variant]
        point = entry.ratio_to_base
    else:
        entry = perplexity[item.variant][item.language]
        point = exponential(entry.log_perplexity - perplexity["base"][item.language].log_perplexity)
    value = point if item.at == "point" else entry.low if item.at == "lower" else entry.high
    return math.nan if value is None else value


def outcome(item: Expectation, report: Report) -> str:
    """Say where something was expected, what came out there, and what is expected."""
    where = f" in {report.language(item.language).name}" if item.language else f" in {item.group}" if item.group else ""
    value = came_out(item) if item.ratio is None else f"perplexity {exactly(item.ratio)} times the base's"
    return f"{report.named(item.variant)}{where}: {value}, expected {expected(item)}"


def came_out(item: Expectation) -> str:
    """Say what came out of an expectation of a measurement, such as "KL from the base 0.132 nats/token"."""
    if item.quantity is None:
        return f"{item.measurement}: this was not measured"
    change = item.change_at_least is not None or item.change_at_most is not None
    value = math.nan if item.value is None else item.value
    told = f"{item.quantity.title} {quantity_text(item.quantity, value, change)} {item.quantity.unit}".rstrip()
    told += " from the base" if change and item.quantity.compare == "difference" else ""
    return f"{told} ({item.at} bound)" if item.at != "point" else told


def expected(item: Expectation) -> str:
    """Say what an expectation asks for, such as "at least 0.100"."""
    quantity = item.quantity
    if item.measurement is None or quantity is None:
        at_least, at_most = _asked(item) if item.measurement is not None else (item.ratio_at_least, item.ratio_at_most)
        return bounds(at_least, at_most)
    change = item.change_at_least is not None or item.change_at_most is not None
    given = zip(("at least", "at most"), _asked(item), strict=True)
    return " and ".join(f"{word} {quantity_text(quantity, one, change)}" for word, one in given if one is not None)
