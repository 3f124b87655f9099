"""From the scores of entries to those of whole units, and which units are a language's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from surgeon.region.units import Aggregate, Parts

_PERCENTILE = 0.95  # over units and languages: the bar of LAPE, as in its paper


class UnitScores:
    """Adds up what the entries of each unit score, tensor by tensor; `values` gives the units' own scores.

    Sums are float64 and taken in the order in which the tensors come.
    """

    def __init__(self, by: Aggregate) -> None:
        self._by = by
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._sizes: dict[str, NDArray[np.int64]] = {}

    def add(self, parts: Parts, scores: NDArray[np.float32]) -> None:
        """Add one tensor's scores, non-negative, of any shape with the tensor's number of entries."""
        lines = _lines(scores.reshape(parts.view), parts.others, self._by)
        count = max(parts.count, len(self._sums.get(parts.group, ())))
        sums, sizes = np.zeros(count), np.zeros(count, dtype=np.int64)
        known = self._sums.get(parts.group)
        if known is not None:
            sums[: len(known)], sizes[: len(known)] = known, self._sizes[parts.group]
        (np.maximum if self._by == "maximum" else np.add).at(sums, parts.labels, lines)
        self._sums[parts.group], self._sizes[parts.group] = sums, sizes + parts.sizes(count)

    def values(self, group: str) -> NDArray[np.float32]:
        """Return the scores of a group's units, shape (units,)."""
        sums = self._sums[group]
        if self._by == "l2":
            sums = np.sqrt(sums)
        elif self._by == "mean":
            sums = sums / np.maximum(self._sizes[group], 1)
        return sums.astype(np.float32)


def _lines(scores: NDArray[np.float32], others: tuple[int, ...], by: Aggregate) -> NDArray[np.float64]:
    """Return what the entries at each label add to its unit, flat; `others` are the axes without labels."""
    result: NDArray[np.float64]
    if by == "maximum":
        result = scores.max(axis=others).astype(np.float64)
    elif by == "l2":
        result = np.square(scores, dtype=np.float64).sum(axis=others)
    else:
        result = scores.sum(axis=others, dtype=np.float64)
    return result.reshape(-1)


def least_shared(by_language: Mapping[str, NDArray[np.float32]], own: str, fraction: float) -> NDArray[np.bool_]:
    """Return the units of one language by the entropy of their activation over languages (LAPE, arXiv 2402.16438).

    A unit's scores, divided by their sum over the languages, have an entropy. Units that in no language score above the
    95th percentile of all scores are left out; of the `int(fraction * units)` of lowest entropy, those belong to a
    language that score above that percentile in it. Ties go to the lower index. Each array has shape (units,).
    """
    scores = np.stack([values.astype(np.float64) for values in by_language.values()])
    bar = np.sort(scores, axis=None)[max(round(_PERCENTILE * scores.size) - 1, 0)] if scores.size else 0.0
    total = scores.sum(axis=0)
    share = np.divide(scores, total, out=np.zeros_like(scores), where=total > 0)
    entropy = -np.sum(share * np.log(share, out=np.zeros_like(share), where=share > 0), axis=0)
    entropy[~(scores > bar).any(axis=0)] = np.inf
    order = np.argsort(entropy, kind="stable")[: int(fraction * entropy.size)]
    kept = np.zeros(entropy.size, dtype=np.bool_)
    kept[order[np.isfinite(entropy[order])]] = True
    chosen: NDArray[np.bool_] = kept & (by_language[own] > bar)
    return chosen
