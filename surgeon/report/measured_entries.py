"""What was measured, as parts of a report: perplexity, every other measurement, sweeps and expectations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from surgeon.model.results import Quantity, exponential
from surgeon.report.entry import Entry


class Perplexity(Entry):
    """One language under one model. `nll` in nats, summed over `tokens` predicted tokens of `bytes` of text.

    `low` and `high` bound its ratio to the base (measure/intervals.py); None for the base itself, and where the text
    is one sentence and one window only.
    """

    nll: float
    tokens: int
    bytes: int
    perplexity: float
    log_perplexity: float
    bits_per_byte: float
    low: float | None = None
    high: float | None = None


class Summary(Entry):
    """A model over all languages; ratios are of geometric means, `log` the natural logarithm of the mean.

    `low` and `high` bound the ratio (measure/intervals.py); None for the base itself, and where some language's text
    is one sentence and one window only.
    """

    geometric_mean_perplexity: float
    log_geometric_mean_perplexity: float
    ratio_to_base: float
    low: float | None = None
    high: float | None = None


class Figure(Entry):
    """What was measured of a model in one group (a language, or a task), over `pieces` independent pieces of it.

    They say as much as `effective` pieces of equal weight. `change` is the ratio or difference to the base, as the
    quantity says; None for the base itself, and where the value is a comparison with the base already. `low` and `high`
    bound the change, or else the value (measure/intervals.py); None where one piece alone was measured. `p` is the
    probability of a change as large by chance. It is `beyond_chance` if it stays among all groups of this variant
    (measure/chance.py).
    """

    value: float
    pieces: int
    effective: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    beyond_chance: bool | None = None


class MeasurementReport(Entry):
    """One kind of measurement: its quantities, and its figures by variant, group and quantity.

    `by` says what the groups are; `overall` are means over them (geometric ones where the comparison is a ratio).
    `remarks` say more in words, by variant and group.
    """

    title: str
    by: str
    quantities: list[Quantity]
    found: dict[str, dict[str, dict[str, Figure]]]
    overall: dict[str, dict[str, Figure]]
    remarks: dict[str, dict[str, str]] = {}

    def beyond_chance(self, variant: str, group: str, quantity: str) -> bool | None:
        """Say whether a variant's change in a group is more than chance; None if that was not tested."""
        figure = self.found.get(variant, {}).get(group, {}).get(quantity)
        return None if figure is None else figure.beyond_chance

    def averaged(self, draws: Sequence[str], group: str | None, quantity: str) -> Figure | None:
        """Return a figure of a group, or over all; of a control that was drawn several times, the mean.

        Its `low` and `high` are then the smallest and the largest change of a draw, or its value where there is none.
        The mean is a geometric one where the comparison is a ratio.
        """
        rows = [
            self.overall.get(name, {}) if group is None else self.found.get(name, {}).get(group, {}) for name in draws
        ]
        found = [row[quantity] for row in rows if quantity in row]
        if len(found) < 2:
            return next(iter(found), None)
        values, changes = [item.value for item in found], [item.change for item in found if item.change is not None]
        ends = changes or values
        ratio = any(item.name == quantity and item.compare == "ratio" for item in self.quantities)
        mean = _geometric if ratio else _arithmetic
        return Figure(
            value=mean(values), pieces=found[0].pieces, low=min(ends), high=max(ends),
            change=mean(changes) if changes else None,
        )  # fmt: skip

    def chance_words(self, variants: Mapping[str, str]) -> str:
        """Say how many groups are worse beyond chance, by variant and its name for people, and how many by chance."""
        parts, first = [], self.quantities[0]
        for name, label in variants.items():
            tested = [row[first.name] for row in self.found.get(name, {}).values() if first.name in row]
            tested = [figure for figure in tested if figure.p is not None]
            if tested:
                base = 1.0 if first.compare == "ratio" else 0.0
                sign = 1 if first.worse == "more" else -1
                worse = sum(bool(f.beyond_chance) and sign * ((f.change or 0.0) - base) > 0 for f in tested)
                parts.append(f"{label}: {worse} of {len(tested)}")
        if not parts:
            return ""
        most = max(len(self.found[name]) for name in variants if name in self.found)
        return (
            f"Worse beyond chance (false discovery rate 5 %): {'; '.join(parts)}. By chance alone some "
            f"{most * 0.025:.1f} of {most} intervals would lie on the worse side."
        )


def _arithmetic(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _geometric(values: Sequence[float]) -> float:
    return exponential(_arithmetic(list(map(math.log, values)))) if min(values) > 0 else _arithmetic(values)


class PartReport(Entry):
    """A variant's cut done in one layer, or one role, alone: how many entries, and the model's mean perplexity.

    `ratio_to_base` is that of geometric means over the languages, `nats` its logarithm, `low` and `high` bound it.
    """

    entries: int
    ratio_to_base: float
    nats: float
    low: float | None = None
    high: float | None = None


class PartsReport(Entry):
    """The parts of a variant's cut, by layer or by role, in the order of the model.

    `sum_nats` adds up their nats, with an interval; `whole_nats` are those of the whole cut.
    """

    parts: dict[str, PartReport]
    sum_nats: float
    sum_low: float | None = None
    sum_high: float | None = None
    whole_nats: float


class PassageReport(Entry):
    """The beginning of a language's text: its tokens, the numbers of those that begin a word, and their losses in nats.

    `losses` are those of each model; None where the loss is not a number.
    """

    tokens: list[str]
    words: list[int]
    losses: dict[str, list[float | None]]


class OverSeeds(Entry):
    """What became of points of a sweep that differ in their seed alone; `values` are theirs on the other axes.

    `mean` is the geometric mean of their ratios to the base, `low` and `high` the smallest and the largest.
    """

    values: list[Any]
    points: list[str]
    mean: float
    low: float
    high: float


class SweepReport(Entry):
    """A grid: the values of each axis, and the variant at each point with its value on every axis.

    A sweep with an axis `seed` has its points together `over_seeds`.
    """

    axes: dict[str, list[Any]]
    points: dict[str, list[Any]]
    over_seeds: list[OverSeeds] = []

    @property
    def control(self) -> str | None:
        """The draw that stands for all, where the points differ in their seed alone: they are one control then."""
        return next(iter(self.points)) if list(self.axes) == ["seed"] else None


class Expectation(Entry):
    """A bound of the recipe and what came out: the figure itself, or a bound of its interval, as `at` says.

    `ratio` is that of perplexities. With a `measurement` it is None, `value` is what came out, and `quantity` says
    what that is; nan, and no `quantity`, if nothing of the kind was found.
    """

    variant: str
    language: str | None
    ratio_at_least: float | None
    ratio_at_most: float | None
    ratio: float | None
    passed: bool
    at: Literal["point", "lower", "upper"] = "point"
    measurement: str | None = None
    quantity: Quantity | None = None
    group: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    change_at_least: float | None = None
    change_at_most: float | None = None
    value: float | None = None
