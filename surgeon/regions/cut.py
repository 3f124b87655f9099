"""From a stream of scores to regions: one pass makes all regions that are selected by one score, and their controls.

A stream yields (unit, language, scores by tensor): all languages of a unit in a row, in the recipe's order, each unit
once. A unit is a layer, what is outside the layers, or less. It comes from a pass through a model, which makes the
scores, from score files, or from weights; a cut is the same. The languages' scores are added up in float32 in their
order, and every cut is exact (`region.select`, `region.streaming`). What stays is the sum over languages in one unit,
the cuts of single languages in it, and finished masks. Scores may be torch's on a device: they are added up there, and
cut there, entry by entry; for whole units and for controls they come to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import present
from surgeon.region.region import Indices, Mask, Region, encode_indices
from surgeon.region.select import keys_of, select_count, select_random
from surgeon.region.streaming import StreamingCut
from surgeon.region.units import Parts, UnitScores, least_shared, unit_sizes
from surgeon.regions.base import SUM, Drawing, RegionPlan, Scores, Stream
from surgeon.regions.scopes import scope_of
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


class RegionCut:
    """Cuts one region while scores come by, unit by unit.

    Of a selection by a language's own entries each language is cut by itself; of every other one the sum.
    """

    def __init__(self, plan: RegionPlan, languages: Sequence[str]) -> None:
        self.plan, self._select = plan, present(plan.select)
        self.scope = scope_of(self._select)
        self.labels = [SUM] if self._select.own is None else list(languages)
        self.masks: dict[str, Mask] = {}
        self._order = {info.name: i for i, info in enumerate(plan.tensors)}
        self._units = UnitCut(self._select, plan.parts) if plan.parts else None
        self._cuts: dict[str, dict[str, Indices]] = {}  # of this unit, by label
        self._spanning: list[_Spanning] = []  # groups of tensors in several units that share one cut
        if self.scope.spans_layers and self._units is None and self._select.at_least is None:
            self._spanning = [_Spanning(self._select, group, self.labels) for group in plan.groups()]
        self._spanned = {name: spanning for spanning in self._spanning for name in spanning.names}

    @property
    def cuts_anywhere(self) -> bool:
        """True if the cut is made where the scores are."""
        return self._units is None and self.scope.cuts_on_device

    def take(self, label: str, scores: Scores) -> None:
        """Take the scores of a unit's tensors, of one language or their sum."""
        mine = self._mine(scores)
        if self._units is not None:
            for info in mine:
                self._units.add(label, info.name, on_host(scores[info.name]))
        elif self._spanned:
            for info in mine:
                self._spanned[info.name].streams[label].take(info.name, scores[info.name])
        elif self.cuts_anywhere and mine and not isinstance(scores[mine[0].name], np.ndarray):
            for group in self.plan.groups(mine):
                self._take_masks(label, self.scope.cut_on_device(self._select, group, scores, self.plan.places))
        else:
            cuts = self._cuts.setdefault(label, {})
            for group in self.plan.groups(mine):
                cuts |= self.scope.cut(self._select, group, lambda name: on_host(scores[name]), self.plan.places)

    def _take_masks(self, label: str, masks: Mapping[str, Mask]) -> None:
        if self.labels == [SUM]:
            self.masks |= masks
        else:
            self._cuts.setdefault(label, {}).update({name: mask.indices() for name, mask in masks.items()})

    def end_unit(self, names: Iterable[str]) -> None:
        """Make the masks of a unit's tensors, now that all languages have come."""
        if self._units is not None and not self.scope.spans_layers:
            for group in self.plan.groups(self._mine(names)):
                self._encode(self._units.choose(group))
            self._units = UnitCut(self._select, self.plan.parts)
        elif self._cuts:
            self._encode(self._without_others(self._cuts))
            self._cuts = {}

    def finish(self) -> Region:
        """Return the region, now that every unit has come by."""
        if self._units is not None and self.scope.spans_layers:
            for group in self.plan.groups():
                self._encode(self._units.choose(group))
        for spanning in self._spanning:
            cuts = {label: stream.finish(spanning.names) for label, stream in spanning.streams.items()}
            self._encode(self._without_others(cuts))
        return region_of(self.plan, self.masks)

    def _mine(self, names: Iterable[str]) -> list[TensorInfo]:
        """Return those of some tensors that are the region's, in its order, which decides between equal scores."""
        return [self.plan.tensors[i] for i in sorted(self._order[name] for name in names if name in self._order)]

    def _without_others(self, cuts: Mapping[str, Mapping[str, Indices]]) -> Mapping[str, Indices]:
        """Return the entries of the sum, or of one language those that no other language has."""
        if self._select.monolingual is None:
            return cuts[SUM]
        chosen = dict(cuts[self._select.monolingual])
        for language, cut in cuts.items():
            if language != self._select.monolingual:
                chosen = {name: np.setdiff1d(chosen[name], cut[name], assume_unique=True) for name in chosen}
        return chosen

    def _encode(self, chosen: Mapping[str, Indices]) -> None:
        shapes = {info.name: info.shape for info in self.plan.tensors}
        self.masks |= {name: encode_indices(indices, shapes[name]) for name, indices in chosen.items()}


class _Spanning:
    """Tensors of several units that share one cut, which is made in a stream of each label."""

    def __init__(self, select: Share, group: Sequence[TensorInfo], labels: Iterable[str]) -> None:
        wanted = select.wanted(sum(info.numel for info in group))
        self.names = [info.name for info in group]
        self.streams = {label: StreamingCut(wanted, select.end) for label in labels}


class Cut:
    """Makes regions from a stream of the scores that they select by, and controls that are drawn in the same pass."""

    def __init__(
        self,
        regions: Iterable[RegionPlan],
        languages: Sequence[str],
        drawings: Iterable[Drawing] = (),
        known: Mapping[str, Region] = MappingProxyType({}),
    ) -> None:
        """`drawings` are controls of some of these regions, or of such as are `known`."""
        self._cuts, self._known = {plan.name: RegionCut(plan, languages) for plan in regions}, known
        self._languages, self._drawings = list(languages), list(drawings)
        self._drawn: dict[str, dict[str, Mask]] = {drawing.plan.name: {} for drawing in self._drawings}
        labelled = [(cut.plan, cut.labels) for cut in self._cuts.values()]
        labelled += [(drawing.plan, [drawing.label]) for drawing in self._drawings]
        self._summed = {info.name for plan, labels in labelled if SUM in labels for info in plan.tensors}
        self._ranked = {drawing.label for drawing in self._drawings} - {SUM}

    @property
    def names(self) -> list[str]:
        """The regions that are made."""
        return [*self._cuts, *self._drawn]

    @property
    def spans_layers(self) -> bool:
        """True if a region is known only when all scores have come by."""
        return any(cut.scope.spans_layers for cut in self._cuts.values())

    def take(self, stream: Stream) -> Iterator[int]:
        """Take a stream of scores; yields each unit when its masks are made.

        Scores are used up: an array may be changed, and is not looked at again after the unit's last language.
        """
        total = _Total(self._summed, len(self._languages))
        own: dict[str, Scores] = {}
        for unit, language, scores in stream:
            if language == self._languages[0]:
                total, own = _Total(self._summed, len(self._languages)), {}
            total.add(scores)
            if language in self._ranked:
                own[language] = scores
            for cut in self._cuts.values():
                if language in cut.labels and language != SUM:
                    cut.take(language, scores)
            if language == self._languages[-1]:
                for cut in self._cuts.values():
                    if SUM in cut.labels:
                        cut.take(SUM, total.scores)
                    cut.end_unit(scores)
                self._draw({SUM: total.scores, **own})
                yield unit

    def finish(self) -> dict[str, Region]:
        """Return the regions, now that every unit has come by."""
        made = {name: cut.finish() for name, cut in self._cuts.items()}
        return made | {one.plan.name: region_of(one.plan, self._drawn[one.plan.name]) for one in self._drawings}

    @property
    def masks(self) -> dict[str, dict[str, Mask]]:
        """What has been selected of each region so far, by tensor."""
        return {name: cut.masks for name, cut in self._cuts.items()} | self._drawn

    def found(self, shapes: Mapping[str, tuple[int, ...]], name: str) -> Region:
        """Return what has been selected of a region in some tensors, to be kept against a crash."""
        masks = self.masks[name]
        return Region({tensor: shape for tensor, shape in shapes.items() if tensor in masks}, masks.__getitem__)

    def take_over(self, masks: Mapping[str, Mapping[str, Mask]]) -> None:
        """Take over what an earlier process, or another one, has selected in other units."""
        for name, found in masks.items():
            self.masks[name].update(found)

    def _draw(self, scores: Mapping[str, Scores]) -> None:
        for drawing in self._drawings:
            known, ranking = self._known.get(drawing.of), scores[drawing.label]
            for info in drawing.plan.tensors:
                if info.name in ranking:
                    of = known
                    if of is None:
                        of = Region({info.name: info.shape}, self._cuts[drawing.of].masks.__getitem__)
                    drawn = drawing.draw(of, info.name, on_host(ranking[info.name]))
                    self._drawn[drawing.plan.name][info.name] = encode_indices(drawn, info.shape)


class _Total:
    """The sum over languages of a unit's scores of some tensors, in float32."""

    def __init__(self, names: set[str], languages: int) -> None:
        self._names, self._alone = names, languages == 1
        self._sums: dict[str, Any] = {}
        self.scores: Scores = self._sums

    def add(self, scores: Scores) -> None:
        """Add one language's scores; those of the only language are taken as they are, unread."""
        if self._alone:
            self.scores = scores
            return
        for name in self._names & scores.keys():
            if name in self._sums:
                self._sums[name] += scores[name]
            elif isinstance(scores[name], np.ndarray):
                self._sums[name] = np.array(scores[name], dtype=np.float32)
            else:
                self._sums[name] = scores[name].clone()


def on_host(scores: Any) -> NDArray[np.float32]:
    """Return one tensor's scores as numpy's, also where they are torch's on a device."""
    found: NDArray[np.float32] = scores if isinstance(scores, np.ndarray) else scores.cpu().numpy()
    return found


def region_from(stream: Stream, cut: Cut) -> Region:
    """Return the only region that a cut makes of a stream."""
    for _ in cut.take(stream):
        pass
    (region,) = cut.finish().values()
    return region


def region_of(plan: RegionPlan, masks: Mapping[str, Mask]) -> Region:
    """Return a planned region with its masks; tensors that share a cut follow one another."""
    order = [info for group in plan.groups() for info in group]
    return Region({info.name: info.shape for info in order}, masks.__getitem__)
