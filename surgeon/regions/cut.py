"""From a stream of scores to regions: one pass makes all regions that are selected by one score, and their controls.

A stream yields (unit, language, scores by tensor): all languages of a unit in a row, in the recipe's order, each unit
once. A unit is a layer, what is outside the layers, or less. It comes from a pass through a model, which makes the
scores, from score files, or from weights; a cut is the same. The languages' scores are added up in float32 in their
order, and every cut is exact (`region.select`). What stays is the sum over languages in one unit,
the cuts of single languages in it, and finished masks. Scores may be torch's on a device: they are added up there, and
cut there, entry by entry; for whole units and for controls they come to the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import present
from surgeon.region.mask import Indices, Mask, encode_indices
from surgeon.region.region import Region
from surgeon.region.select import StreamingCut, keys_of, on_host, select_count, select_random
from surgeon.region.units import Parts, UnitScores, least_shared, unit_sizes
from surgeon.regions.base import SUM, Drawing, RegionPlan, Scores, Stream
from surgeon.regions.scopes import scope_of
from surgeon.regions.share import Share


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
        units = {label: sizes > 0 for label, sizes in unit_sizes(parts.values()).items()}  # that there are
        for every, chosen in zip(units.values(), self._chosen(units), strict=True):
            every[np.flatnonzero(every)] = chosen
        return {name: part.entries(units[part.group]) for name, part in parts.items()}

    def _chosen(self, units: Mapping[str, NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
        """Choose of units that are there, by group; returns which of these, group by group."""
        select = self._select
        counts = [(group, int(np.count_nonzero(existing))) for group, existing in units.items()]
        if select.random is not None:
            drawn = select_random(counts, select.random, select.seed, f"{self._region}:{counts[0][0]}")
            return [np.isin(np.arange(count), drawn[group]) for group, count in counts]
        scores = {
            label: {group: of_units.values(group)[existing] for group, existing in units.items()}
            for label, of_units in self._scores.items()
        }
        if select.specific is not None:
            every = {label: np.concatenate(list(values.values())) for label, values in scores.items()}
            chosen = least_shared(every, select.specific, select.top or 0.0)
            return np.split(chosen, np.cumsum([count for _, count in counts])[:-1])
        cuts = {label: self._cut(counts, values) for label, values in scores.items()}
        if select.monolingual is None:
            return cuts[SUM]
        own = cuts.pop(select.monolingual)
        return [mine & ~np.any(others, axis=0) for mine, *others in zip(own, *cuts.values(), strict=True)]

    def _cut(
        self, counts: Sequence[tuple[str, int]], scores: Mapping[str, NDArray[np.float32]]
    ) -> list[NDArray[np.bool_]]:
        if self._select.at_least is not None:
            return [scores[group] >= self._select.at_least for group, _ in counts]
        wanted = self._select.wanted(sum(count for _, count in counts))
        return [chosen for _, chosen in select_count(scores.__getitem__, counts, wanted, self._select.end)]


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
        self._cuts: dict[str, dict[str, Mask]] = {}  # of this unit, by label
        # By tensor, where those of several units share one cut: a stream for each label.
        self._streams: dict[str, dict[str, StreamingCut]] = {}
        if self.scope.spans_layers and self._units is None and self._select.at_least is None:
            for group in plan.groups():
                wanted = self._select.wanted(sum(info.numel for info in group))
                streams = {label: StreamingCut(wanted, self._select.end) for label in self.labels}
                self._streams |= {info.name: streams for info in group}

    def take(self, label: str, scores: Scores) -> None:
        """Take the scores of a unit's tensors, of one language or their sum."""
        mine = self._mine(scores)
        for info in mine:
            if self._units is not None:
                self._units.add(label, info.name, on_host(scores[info.name]))
            elif self._streams:
                self._streams[info.name][label].take(info.name, scores[info.name])
        if self._units is None and not self._streams:
            cuts = self._cuts.setdefault(label, {})
            for group in self.plan.groups(mine):
                cuts |= self.scope.cut(self._select, group, scores.__getitem__, self.plan.places)

    def end_unit(self, names: Iterable[str]) -> None:
        """Make the masks of a unit's tensors, now that all languages have come."""
        if self._units is not None and not self.scope.spans_layers:
            for group in self.plan.groups(self._mine(names)):
                self.masks |= self._encoded(self._units.choose(group))
            self._units = UnitCut(self._select, self.plan.parts)
        elif self._cuts:
            self._take_masks(self._cuts)
            self._cuts = {}

    def finish(self) -> Region:
        """Return the region, now that every unit has come by."""
        for group in self.plan.groups() if self.scope.spans_layers else ():
            if self._units is not None:
                self.masks |= self._encoded(self._units.choose(group))
            elif self._streams:
                names = [info.name for info in group]
                streams = self._streams[names[0]].items()
                self._take_masks({label: self._encoded(stream.finish(names)) for label, stream in streams})
        return region_of(self.plan, self.masks)

    def _mine(self, names: Iterable[str]) -> list[TensorInfo]:
        """Return those of some tensors that are the region's, in its order, which decides between equal scores."""
        return [self.plan.tensors[i] for i in sorted(self._order[name] for name in names if name in self._order)]

    def _take_masks(self, cuts: Mapping[str, Mapping[str, Mask]]) -> None:
        """Take the entries of the sum, or of one language those that no other language has."""
        own = self._select.monolingual
        if own is None:
            self.masks |= cuts[SUM]
            return
        chosen = {name: mask.indices() for name, mask in cuts[own].items()}
        for language, masks in cuts.items():
            if language != own:
                for name in chosen:
                    chosen[name] = np.setdiff1d(chosen[name], masks[name].indices(), assume_unique=True)
        self.masks |= self._encoded(chosen)

    def _encoded(self, chosen: Mapping[str, Indices]) -> dict[str, Mask]:
        shapes = {name: self.plan.tensors[self._order[name]].shape for name in chosen}
        return {name: encode_indices(indices, shapes[name]) for name, indices in chosen.items()}


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
        sums: dict[str, Any] = {}
        total: Scores = {}
        own: dict[str, Scores] = {}
        for unit, language, scores in stream:
            if language == self._languages[0]:  # the last unit's sum goes before this one's is made
                sums, total, own = {}, {}, {}
            if len(self._languages) > 1:
                _add(sums, scores, self._summed)
            total = sums if len(self._languages) > 1 else scores  # those of an only language as they are, unread
            if language in self._ranked:
                own[language] = scores
            for cut in self._cuts.values():
                if language in cut.labels and language != SUM:
                    cut.take(language, scores)
            if language == self._languages[-1]:
                for cut in self._cuts.values():
                    if SUM in cut.labels:
                        cut.take(SUM, total)
                    cut.end_unit(scores)
                self._draw({SUM: total, **own})
                yield unit

    def finish(self) -> dict[str, Region]:
        """Return the regions, now that every unit has come by."""
        regions = {name: cut.finish() for name, cut in self._cuts.items()}
        return regions | {one.plan.name: region_of(one.plan, self._drawn[one.plan.name]) for one in self._drawings}

    @property
    def masks(self) -> dict[str, dict[str, Mask]]:
        """What has been selected of each region so far, by tensor."""
        return {name: cut.masks for name, cut in self._cuts.items()} | self._drawn

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


def _add(sums: dict[str, Any], scores: Scores, names: set[str]) -> None:
    """Add one language's scores of some tensors to those of the languages before it, in float32."""
    for name in names & scores.keys():
        if name in sums:
            sums[name] += scores[name]
        elif isinstance(scores[name], np.ndarray):
            sums[name] = np.array(scores[name], dtype=np.float32)
        else:
            sums[name] = scores[name].clone()


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
