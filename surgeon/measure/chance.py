"""What chance alone would do: a test of a change over pieces of text, and the false discovery rate of many tests.

With 30 languages some intervals lie beyond the base by chance. What is marked is what Benjamini and Hochberg (1995) let
pass, so that of all that is marked some 5 % are expected to be chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from surgeon.model.results import Sums

RATE = 0.05  # of what is marked, the share that chance is expected to have had a hand in


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
