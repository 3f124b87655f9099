"""Intervals of ratios: a plain loop gives the same, they keep their promise, and short text has none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from surgeon.measure.uncertainty import RESAMPLES, Interval, change_interval, resampled_changes
from surgeon.model.results import Measure, Sums, exponential
from surgeon.recipe.schema import ExpectSpec
from surgeon.report.expected import check_expectations
from surgeon.report.measured import perplexities, summarize
from surgeon.seeds import generator

Windows = list[tuple[float, int]]


def made_up(
    languages: int, count: int, seed: int, effect: float = 0.2
) -> tuple[dict[str, Windows], dict[str, Windows]]:
    """Windows of 50 to 100 tokens; the variant adds `effect` nats a token, more in some windows, to a noisy base."""
    random = np.random.default_rng(seed)
    base: dict[str, Windows] = {}
    variant: dict[str, Windows] = {}
    for i in range(languages):
        tokens = random.integers(50, 100, count)
        before = tokens * random.normal(4, 1, count)  # what a window's text costs varies much more ...
        after = before + tokens * random.normal(effect, 0.05, count)  # ... than what the variant adds to it
        base[f"l{i}"] = [(float(nll), int(n)) for nll, n in zip(before, tokens, strict=True)]
        variant[f"l{i}"] = [(float(nll), int(n)) for nll, n in zip(after, tokens, strict=True)]
    return base, variant


def sums(windows: Windows) -> Sums:
    return Sums(tuple(nll for nll, _ in windows), tuple(float(count) for _, count in windows))


def resampled(base: Windows, variant: Windows, language: str) -> Any:
    return resampled_changes(sums(base), sums(variant), language)


def interval(base: dict[str, Windows], variant: dict[str, Windows], *languages: str) -> Interval | None:
    """The interval of the change in some languages, in nats a token."""
    return change_interval({code: (sums(base[code]), sums(variant[code])) for code in languages or base})


def test_resamples_are_those_of_a_plain_loop_and_paired() -> None:
    base, variant = made_up(1, 7, 0)
    found = resampled(base["l0"], variant["l0"], "l0")
    drawn = generator(0, "bootstrap:l0").integers(7, size=(RESAMPLES, 6))
    for number in range(0, RESAMPLES, 97):
        before = after = tokens = 0.0
        for window in drawn[number]:
            before += base["l0"][window][0]
            after += variant["l0"][window][0]
            tokens += base["l0"][window][1]
        assert found[number] == pytest.approx(after / tokens - before / tokens, rel=1e-9)
    assert found.shape == (RESAMPLES,)
    # Paired: the base's own variance, twenty times larger, is not in it.
    assert found.std() < 0.05


def test_the_bounds_are_the_outer_fortieths_of_the_resamples() -> None:
    base, variant = made_up(3, 9, 1)
    ordered = sorted(resampled(base["l1"], variant["l1"], "l1").tolist())
    one = interval(base, variant, "l1")
    assert one is not None
    assert (one.low, one.high) == (ordered[24], ordered[-25])
    logs = [resampled(base[code], variant[code], code) for code in base]
    means = sorted(math.fsum(column) / 3 for column in zip(*logs, strict=True))
    both = interval(base, variant)
    assert both is not None
    assert (both.low, both.high) == (pytest.approx(means[24]), pytest.approx(means[-25]))


@pytest.mark.parametrize(("languages", "count"), [(30, 2), (30, 8), (1, 60)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(languages: int, count: int) -> None:
    """95 % of the time, within what 200 trials can tell; with n draws of n = 2 windows it would be about 83 %."""
    held = 0
    for trial in range(200):
        base, variant = made_up(languages, count, trial)
        # Every trial has languages of its own, as the draw depends on their names.
        renamed = ({f"{trial}{code}": windows for code, windows in side.items()} for side in (base, variant))
        found = interval(*renamed)
        assert found is not None
        held += found.low <= 0.2 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def measures(base: dict[str, Windows], variant: dict[str, Windows]) -> dict[str, dict[str, Measure]]:
    def measure(windows: Windows) -> Measure:
        return Measure(math.fsum(nll for nll, _ in windows), sum(n for _, n in windows), 1, tuple(windows))

    return {
        "base": {code: measure(windows) for code, windows in base.items()},
        "cut": {code: measure(windows) for code, windows in variant.items()},
    }


def test_the_report_has_them_and_expectations_may_ask_for_a_bound() -> None:
    found = measures(*made_up(4, 6, 3))
    summary, rows = summarize(found), perplexities(found)
    assert summary["base"].low is None
    assert rows["base"]["l0"].low is None
    cut = summary["cut"]
    assert cut.low is not None
    assert cut.high is not None
    assert cut.low < cut.ratio_to_base < cut.high
    low, high = rows["cut"]["l2"].low, rows["cut"]["l2"].high
    assert low is not None
    assert high is not None
    middle = (cut.low + cut.ratio_to_base) / 2  # the ratio is above it, the lower bound is not
    expect = [
        ExpectSpec(variant="cut", ratio_at_least=middle),
        ExpectSpec(variant="cut", ratio_at_least=middle, at="lower"),
        ExpectSpec(variant="cut", ratio_at_most=cut.high, at="upper"),
        ExpectSpec(variant="cut", ratio_at_least=low, ratio_at_most=low, at="lower", language="l2"),
        ExpectSpec(variant="cut", ratio_at_least=high, ratio_at_most=high, at="upper", language="l2"),
    ]
    done = check_expectations(expect, rows, summary, {})
    assert [item.passed for item in done] == [True, False, True, True, True]
    assert [item.ratio for item in done] == [cut.ratio_to_base, cut.low, cut.high, low, high]


def test_one_window_has_no_interval_and_a_bound_that_needs_one_fails() -> None:
    base, variant = made_up(2, 5, 4)
    base["l1"], variant["l1"] = base["l1"][:1], variant["l1"][:1]
    found = measures(base, variant)
    summary, rows = summarize(found), perplexities(found)
    assert summary["cut"].low is None
    assert rows["cut"]["l1"].low is None
    assert rows["cut"]["l0"].low is not None
    (item,) = check_expectations([ExpectSpec(variant="cut", ratio_at_least=0.1, at="lower")], rows, summary, {})
    assert not item.passed
    assert math.isnan(item.ratio)


def test_models_measured_in_different_windows_have_none() -> None:
    base, variant = made_up(1, 5, 5)
    variant["l0"] = [(nll, tokens + 1) for nll, tokens in variant["l0"]]
    assert interval(base, variant) is None


def test_broken_models_have_broken_bounds_and_no_warnings() -> None:
    base, variant = made_up(1, 5, 6)
    for value, low in ((1e6, math.inf), (math.inf, math.inf), (math.nan, math.nan)):
        broken = {"l0": [(value, tokens) for _, tokens in variant["l0"]]}
        found = interval(base, broken)
        assert found is not None
        assert exponential(found.low) == pytest.approx(low, nan_ok=True)
    infinite = {"l0": [(math.inf, tokens) for _, tokens in base["l0"]]}
    found = interval(infinite, infinite)
    assert found is not None
    assert math.isnan(found.high)
