"""What the figures are, by their definitions, and how results of several models are put together."""

from __future__ import annotations

import math

import pytest

from surgeon.model.results import Continuation, Figures, Measure, Sums, Verification, exponential, geometric_mean


def test_figures_are_their_definitions() -> None:
    measure = Measure(nll=12.0, tokens=8, bytes=40)
    assert measure.log_perplexity == 1.5
    assert measure.perplexity == pytest.approx(4.4816890703, rel=1e-9)
    assert measure.bits_per_byte == pytest.approx(0.4328085123, rel=1e-9)  # 12 / 0.6931471806 / 40
    assert measure.pieces == ()


def test_what_is_beyond_the_range_of_floats_stays_said() -> None:
    assert exponential(710.0) == math.inf
    assert exponential(709.0) < math.inf
    assert math.isnan(exponential(math.nan))
    assert (exponential(-math.inf), exponential(0.0)) == (0.0, 1.0)


def test_the_mean_of_languages_is_of_logarithms_and_each_counts_once() -> None:
    measures = {"de": Measure(10.0, 10, 1), "fr": Measure(300.0, 100, 1), "it": Measure(0.0, 1, 1)}
    assert geometric_mean(measures) == pytest.approx(4 / 3)


def test_results_are_joined_and_put_in_order() -> None:
    one, two = {"de": Measure(1.0, 1, 1)}, {"de": Measure(2.0, 1, 1)}
    said = [Continuation("a", "b", 1, "end")]
    left, right = Verification({"cut": one}, {"cut": said}), Verification({"base": two, "more": one}, {"more": said})
    both = left.joined(right)
    assert both == Verification({"cut": one, "base": two, "more": one}, {"cut": said, "more": said})
    assert not both.figures
    kinds = [Verification(figures={"cut": {kind: Figures({"de": {kind: Sums((1.0,), (2.0,))}})}}) for kind in "ab"]
    assert set(kinds[0].joined(kinds[1]).figures["cut"]) == {"a", "b"}  # one model, measured twice
    ordered = both.ordered(name for name in ("more", "nowhere", "base"))
    assert list(ordered.measures) == ["more", "base"]
    assert ordered == Verification({"more": one, "base": two}, {"more": said})
    assert both.ordered(["more", "cut"]).continuations == {"more": said, "cut": said}
