"""How sure a figure is: a bootstrap over the pieces of text it was measured on: sentences, or questions by paragraph.

Of each language's n pieces n - 1 are drawn with replacement, which makes the spread of the draws that of the mean also
where n is small (n draws would show too little of it, at n = 2 half the variance; McCarthy and Snowden 1985). The same
draw serves the base and the variant: both saw the same text, and what the text does to both cancels. It depends on the
language and the number of pieces alone, so that variants are compared on the same draws, too. The interval holds the
middle 95 % of the ratios; that of geometric means takes the mean over the languages' logarithms in every draw.

With 30 languages some intervals lie beyond the base by chance. What is marked is what Benjamini and Hochberg (1995) let
pass, so that of all that is marked some 5 % are expected to be chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.model.results import Sums
from surgeon.seeds import generator

LEVEL = 0.95
RESAMPLES = 1000
SEED = 0
RATE = 0.05  # of what is marked, the share that chance is expected to have had a hand in


@dataclass(frozen=True)
class Interval:
    """Bounds of a ratio or a difference; inf and nan where a model is so broken that these are."""

    low: float
    high: float


def change_interval(pairs: Mapping[str, tuple[Sums | None, Sums]]) -> Interval | None:
    """Return the interval of a figure's difference to the base's, or of the figure itself where no base is given.

    Of several groups it is that of the mean over them. `pairs` are the sums of base and model, by group. None if a
    group stands on one piece only, which cannot vary, or if the two stand on different pieces.
    """
    if not pairs or not all(
        len(sums.weights) > 1 and (base is None or base.weights == sums.weights) for base, sums in pairs.values()
    ):
        return None
    changes = np.mean([resampled_changes(*pair, group) for group, pair in pairs.items()], axis=0)
    # Bounds are values that did come out, the outer ones, so that infinities need no interpolation.
    if np.isnan(changes).any():
        return Interval(math.nan, math.nan)
    ordered = np.sort(changes)
    outside = math.floor((1 - LEVEL) / 2 * (ordered.size - 1))
    return Interval(float(ordered[outside]), float(ordered[ordered.size - 1 - outside]))


def resampled_changes(base: Sums | None, variant: Sums, label: str) -> NDArray[np.float64]:
    """Return the difference to the base, or the figure itself, in each resample: float64 of shape (RESAMPLES,)."""
    weights = np.array(variant.weights, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf of two broken models is no number
        totals = np.array(variant.totals, np.float64)
        totals = totals if base is None else totals - np.array(base.totals, np.float64)
        drawn = generator(SEED, f"bootstrap:{label}").integers(weights.size, size=(RESAMPLES, weights.size - 1))
        changes: NDArray[np.float64] = totals[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    return changes


def probability(base: Sums, variant: Sums) -> float | None:
    """Return how probable a change as large is where there is none, either way: a paired t-test of a ratio of sums.

    The spread of a ratio of sums over n pieces is that of its residuals (Cochran 1977, 6.4). None with fewer than two
    pieces, or where the two were not measured on the same; nan where the models are broken beyond numbers.
    """
    if len(variant.weights) < 2 or base.weights != variant.weights:
        return None
    weights = np.array(variant.weights)
    with np.errstate(invalid="ignore"):
        differences = np.array(variant.totals) - np.array(base.totals)
        change = differences.sum() / weights.sum()
        residuals = differences - change * weights
    count = weights.size
    spread = math.sqrt(count / (count - 1) * float(np.square(residuals).sum())) / float(weights.sum())
    if not (math.isfinite(float(change)) and math.isfinite(spread)):
        return 0.0 if float(change) == math.inf else math.nan
    if spread == 0:
        return 1.0 if change == 0 else 0.0
    return two_sided(float(change) / spread, count - 1)


def two_sided(t: float, freedom: int) -> float:
    """Return the probability that |t| of Student's distribution is as large (Abramowitz and Stegun 1964, 26.7.3-4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    for k in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= cosine * cosine * ((k - 1) / k)
        total += term
    inside = sine * total if freedom % 2 == 0 else 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))
    return max(1.0 - inside, 0.0)


def survives(probabilities: Sequence[float | None], rate: float = RATE) -> list[bool]:
    """Return which of many tests stay when a share of false discoveries is let pass; what is no number does not."""
    tested = sorted(p for p in probabilities if p is not None and not math.isnan(p))
    highest = max((p for rank, p in enumerate(tested, 1) if p <= rate * rank / len(tested)), default=-1.0)
    return [p is not None and p <= highest for p in probabilities]


def effective(sums: Sums) -> float:
    """Return how many pieces of equal weight would say as much: (sum of weights)^2 / sum of squares (Kish 1965)."""
    squares = math.fsum(weight * weight for weight in sums.weights)
    return math.fsum(sums.weights) ** 2 / squares if squares else 0.0
