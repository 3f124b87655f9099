"""How sure a ratio of perplexities is: a bootstrap over the windows of text it was measured in.

Of each language's n windows n - 1 are drawn with replacement, which makes the spread of the draws that of the mean also
where n is small (n draws would show too little of it, at n = 2 half the variance; McCarthy and Snowden 1985). The same
draw serves the base and the variant: both saw the same text, and what the text does to both cancels. It depends on the
language and the number of windows alone, so that variants are compared on the same draws, too. The interval holds the
middle 95 % of the ratios; that of geometric means takes the mean over the languages' logarithms in every draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.seeds import generator

LEVEL = 0.95
RESAMPLES = 1000
SEED = 0
Windows = Sequence[tuple[float, int]]  # (sum of negative log-likelihoods in nats, tokens predicted) of each window


@dataclass(frozen=True)
class Interval:
    """Bounds of a ratio; inf and nan where a model is so broken that its ratio is."""

    low: float
    high: float


def language_interval(base: Windows, variant: Windows, language: str) -> Interval | None:
    """Return the interval of one language's ratio.

    None if it has one window only, which cannot vary, or if the two were measured in different windows.
    """
    if not _comparable(base, variant):
        return None
    return _interval(resampled_logs(base, variant, language))


def mean_interval(base: Mapping[str, Windows], variant: Mapping[str, Windows]) -> Interval | None:
    """Return the interval of the ratio of geometric means over languages; None if that of a language is."""
    if not base or not all(_comparable(windows, variant[language]) for language, windows in base.items()):
        return None
    logs = [resampled_logs(base[language], variant[language], language) for language in base]
    return _interval(np.mean(logs, axis=0))


def resampled_logs(base: Windows, variant: Windows, language: str) -> NDArray[np.float64]:
    """Return the logarithm of the ratio in each resample, float64 of shape (RESAMPLES,)."""
    tokens = np.array([count for _, count in base], dtype=np.int64)
    with np.errstate(invalid="ignore"):  # inf - inf of two broken models is no number
        differences = np.array([nll for nll, _ in variant], np.float64) - np.array([nll for nll, _ in base], np.float64)
    drawn = generator(SEED, f"bootstrap:{language}").integers(tokens.size, size=(RESAMPLES, tokens.size - 1))
    logs: NDArray[np.float64] = differences[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    return logs


def _comparable(base: Windows, variant: Windows) -> bool:
    return len(base) > 1 and [tokens for _, tokens in base] == [tokens for _, tokens in variant]


def _interval(logs: NDArray[np.float64]) -> Interval:
    """Take values that did come out, the outer ones, so that infinities need no interpolation."""
    if np.isnan(logs).any():
        return Interval(math.nan, math.nan)
    ordered = np.sort(logs)
    outside = (1 - LEVEL) / 2 * (ordered.size - 1)
    bounds = ordered[[math.floor(outside), ordered.size - 1 - math.floor(outside)]]
    with np.errstate(over="ignore"):
        low, high = np.exp(bounds)
    return Interval(float(low), float(high))
