"""How sure a figure is: a bootstrap over the pieces of text it was measured on: sentences, or questions by paragraph.

Of each language's n pieces n - 1 are drawn with replacement, which makes the spread of the draws that of the mean also
where n is small (n draws would show too little of it, at n = 2 half the variance; McCarthy and Snowden 1985). The same
draw serves the base and the variant: both saw the same text, and what the text does to both cancels. It depends on the
language and the number of pieces alone, so that variants are compared on the same draws, too. The interval holds the
middle 95 % of the ratios; that of geometric means takes the mean over the languages' logarithms in every draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.model.results import Sums, exponential
from surgeon.seeds import generator

LEVEL = 0.95
RESAMPLES = 1000
SEED = 0
Counted = Sequence[tuple[float, int]]  # (sum of negative log-likelihoods in nats, tokens predicted) of each piece


@dataclass(frozen=True)
class Interval:
    """Bounds of a ratio or a difference; inf and nan where a model is so broken that these are."""

    low: float
    high: float


def language_interval(base: Counted, variant: Counted, language: str) -> Interval | None:
    """Return the interval of one language's ratio of perplexities.

    None if it has one piece only, which cannot vary, or if the two were measured on different ones.
    """
    return _exponential(change_interval(_sums(base), _sums(variant), language))


def mean_interval(base: Mapping[str, Counted], variant: Mapping[str, Counted]) -> Interval | None:
    """Return the interval of the ratio of geometric means over languages; None if that of a language is."""
    if not base:
        return None
    return _exponential(
        mean_change_interval({code: (_sums(pieces), _sums(variant[code])) for code, pieces in base.items()})
    )


def change_interval(base: Sums | None, variant: Sums, label: str) -> Interval | None:
    """Return the interval of a figure's difference to the base's, or of the figure itself if no base is given.

    None if it stands on one piece only, which cannot vary, or if the two stand on different pieces.
    """
    if not _comparable(base, variant):
        return None
    return _interval(resampled_changes(base, variant, label))


def mean_change_interval(pairs: Mapping[str, tuple[Sums | None, Sums]]) -> Interval | None:
    """Return the interval of the mean of differences (or figures) over groups; None if that of a group is."""
    if not pairs or not all(_comparable(base, variant) for base, variant in pairs.values()):
        return None
    return _interval(np.mean([resampled_changes(*pair, group) for group, pair in pairs.items()], axis=0))


def resampled_changes(base: Sums | None, variant: Sums, label: str) -> NDArray[np.float64]:
    """Return the difference to the base, or the figure itself, in each resample: float64 of shape (RESAMPLES,)."""
    weights = np.array(variant.weights, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf of two broken models is no number
        totals = np.array(variant.totals, np.float64)
        totals = totals if base is None else totals - np.array(base.totals, np.float64)
        drawn = generator(SEED, f"bootstrap:{label}").integers(weights.size, size=(RESAMPLES, weights.size - 1))
        changes: NDArray[np.float64] = totals[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    return changes


def _sums(pieces: Counted) -> Sums:
    return Sums(tuple(nll for nll, _ in pieces), tuple(float(count) for _, count in pieces))


def _comparable(base: Sums | None, variant: Sums) -> bool:
    return len(variant.weights) > 1 and (base is None or base.weights == variant.weights)


def _interval(changes: NDArray[np.float64]) -> Interval:
    """Take values that did come out, the outer ones, so that infinities need no interpolation."""
    if np.isnan(changes).any():
        return Interval(math.nan, math.nan)
    ordered = np.sort(changes)
    outside = math.floor((1 - LEVEL) / 2 * (ordered.size - 1))
    return Interval(float(ordered[outside]), float(ordered[ordered.size - 1 - outside]))


def _exponential(found: Interval | None) -> Interval | None:
    return None if found is None else Interval(*(exponential(bound) for bound in (found.low, found.high)))
