"""A region of whole units: their scores added up tensor by tensor, and the units chosen, group of tensors by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.storage import TensorInfo
from surgeon.region.region import Indices
from surgeon.region.select import keys_of, select_count, select_random
from surgeon.region.unit_scores import UnitScores, least_shared
from surgeon.region.units import Parts, unit_sizes

if TYPE_CHECKING:
    from surgeon.regions.share import Share

Chosen = dict[str, NDArray[np.bool_]]  # which units, by group of units


class UnitCut:
    """Takes the scores of a region's tensors, by label: a language, or "" for their sum; `choose` cuts a group."""

    def __init__(self, select: Share, parts: Mapping[str, Parts], region: str = "") -> None:
        """`parts` are those of units in the region's tensors; a random draw goes by the `region`'s name, too."""
        self._region = region
        self._select, self._parts = select, parts
        self._scores: dict[str, UnitScores] = {}

    def add(self, label: str, name: str, scores: NDArray[np.float32]) -> None:
        """Add one tensor's scores.

        Raises:
            InputError: a score is negative or not a number.
        """
        keys_of(name, scores)
        self._scores.setdefault(label, UnitScores(self._select.by)).add(self._parts[name], scores)

    def choose(self, group: Sequence[TensorInfo]) -> dict[str, Indices]:
        """Return the entries of the units chosen of a group of tensors that share one cut, all of which were added."""
        parts = {info.name: self._parts[info.name] for info in group}
        there = {label: sizes > 0 for label, sizes in unit_sizes(parts.values()).items()}
        chosen = self._chosen(there)
        return {name: part.entries(chosen[part.group]) for name, part in parts.items()}

    def _chosen(self, there: Chosen) -> Chosen:
        """Choose of the units that are there."""
        select = self._select
        counts = [(group, int(np.count_nonzero(units))) for group, units in there.items()]
        if select.random is not None:
            return _spread(
                there, select_random(counts, select.random or 0.0, select.seed, f"{self._region}:{counts[0][0]}")
            )
        scores = {
            label: {group: found.values(group)[units] for group, units in there.items()}
            for label, found in self._scores.items()
        }
        if select.specific is not None:
            every = {label: np.concatenate(list(found.values())) for label, found in scores.items()}
            return _cut_up(there, least_shared(every, select.specific, select.top or 0.0))
        cuts = {label: self._cut(there, counts, found.__getitem__) for label, found in scores.items()}
        if select.monolingual is None:
            return cuts[""]
        own = cuts.pop(select.monolingual)
        return {group: own[group] & ~np.any([cut[group] for cut in cuts.values()], axis=0) for group in own}

    def _cut(
        self, there: Chosen, counts: Sequence[tuple[str, int]], scores: Callable[[str], NDArray[np.float32]]
    ) -> Chosen:
        least = self._select.at_least
        if least is not None:
            return _spread(there, {group: np.flatnonzero(scores(group) >= least) for group in there})
        wanted = self._select.wanted(sum(count for _, count in counts))
        return _spread(there, select_count(scores, counts, wanted, self._select.end))


def _spread(there: Chosen, chosen: Mapping[str, Indices]) -> Chosen:
    """Turn places among the units that are there into units."""
    result = {}
    for group, units in there.items():
        result[group] = np.zeros(units.size, dtype=np.bool_)
        result[group][np.flatnonzero(units)[chosen[group]]] = True
    return result


def _cut_up(there: Chosen, chosen: NDArray[np.bool_]) -> Chosen:
    """The same, of one row of places in all groups."""
    ends = np.cumsum([np.count_nonzero(units) for units in there.values()])[:-1]
    rows = np.split(chosen, ends)
    return _spread(there, {group: np.flatnonzero(row) for group, row in zip(there, rows, strict=True)})
