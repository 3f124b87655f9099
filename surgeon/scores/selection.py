"""From scores to masks, group of tensors by group: out of score files, or while a sweep makes the scores.

Both ways give the same entries: the languages' scores are added in float32 in the recipe's order, and every cut is
exact. A sweep hands over a layer at a time, all its languages in a row, so that only the sum over languages, the cuts
of single languages and finished masks are kept. A cut over all tensors at once (`scope: global`) streams.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.storage import TensorInfo
from surgeon.plan.regions import RegionPlan
from surgeon.region.region import Indices, Mask, Region, encode_indices
from surgeon.region.select import Scores, keys_of, select_count, select_in_outputs, select_random
from surgeon.region.streaming import StreamingCut
from surgeon.scores.unit_cut import UnitCut

Arrays = Mapping[str, NDArray[np.float32]]
Draw = Callable[[Region, str, Scores], Indices]  # from a region, one of its tensors and a ranking
_Cuts = dict[str, dict[str, Indices]]  # by language; the sum over languages goes by ""


def select_group(region: RegionPlan, group: Sequence[TensorInfo], readers: Mapping[str, Scores]) -> dict[str, Indices]:
    """Choose a group's entries from readers of whole scores, one per language in the recipe's order."""
    assert region.select is not None
    if region.parts:
        return _select_units(region, group, readers)
    if region.select.kind == "random":
        return select_random(_sizes(group), region.select.random or 0.0, region.select.seed)
    if region.select.monolingual is None:
        return _cut(region, group, summed(list(readers.values())), region.select.kind)
    return _without_others(region, {name: _cut(region, group, reader, "top") for name, reader in readers.items()})


def _select_units(region: RegionPlan, group: Sequence[TensorInfo], readers: Mapping[str, Scores]) -> dict[str, Indices]:
    cut = UnitCut(region)
    wanted = dict(readers) if region.by_language else {"": summed(list(readers.values()))} if readers else {}
    for label, reader in wanted.items():
        for info in group:
            cut.add(label, info.name, reader(info.name))
    return cut.choose(group)


def _sizes(group: Sequence[TensorInfo]) -> list[tuple[str, int]]:
    return [(info.name, info.numel) for info in group]


def _cut(
    region: RegionPlan, group: Sequence[TensorInfo], scores: Scores, kind: Literal["top", "bottom"]
) -> dict[str, Indices]:
    assert region.select is not None
    if region.select.at_least is not None:
        least = np.array([region.select.at_least], dtype=np.float32).view(np.uint32)[0]
        return {info.name: np.flatnonzero(keys_of(info.name, scores(info.name)) >= least) for info in group}
    if region.select.scope != "output":
        wanted = region.select.wanted(sum(info.numel for info in group))
        return select_count(scores, _sizes(group), wanted, kind)
    fraction = region.select.fraction or 0.0
    axes = {info.name: region.places[info.name].output_axis for info in group}
    return {name: select_in_outputs(name, scores(name), fraction, kind, axis) for name, axis in axes.items()}


def _stream(region: RegionPlan) -> StreamingCut:
    assert region.select is not None
    return StreamingCut(region.select.wanted(region.numel), "bottom" if region.select.kind == "bottom" else "top")


def _without_others(region: RegionPlan, cuts: Mapping[str, dict[str, Indices]]) -> dict[str, Indices]:
    """Return one language's entries that no other language has."""
    assert region.select is not None
    own = str(region.select.monolingual)
    chosen = dict(cuts[own])
    for language, cut in cuts.items():
        if language != own:
            chosen = {name: np.setdiff1d(chosen[name], cut[name], assume_unique=True) for name in chosen}
    return chosen


def summed(readers: Sequence[Scores]) -> Scores:
    """Return a reader that adds the languages' scores in float32, in the recipe's order."""

    def total(name: str) -> NDArray[np.float32]:
        result = np.array(readers[0](name), dtype=np.float32)
        for reader in readers[1:]:
            result += reader(name)
        return result

    return total


def _is_global(region: RegionPlan) -> bool:
    return region.select is not None and region.select.scope == "global"


class StreamedSelection:
    """Makes regions while a sweep makes the scores that they select by."""

    def __init__(
        self, regions: Iterable[RegionPlan], languages: Sequence[str], controls: Iterable[tuple[RegionPlan, Draw]] = ()
    ) -> None:
        """`controls` are drawn by the sum over languages, from a region of these, once that is made in a layer."""
        self._regions, self._languages, self._controls = list(regions), list(languages), list(controls)
        self.names = [region.name for region in (*self._regions, *(control for control, _ in self._controls))]
        self._masks: dict[str, dict[str, Mask]] = {name: {} for name in self.names}
        self._streams = {
            (region.name, label): _stream(region)
            for region in self._regions
            if region.select is not None and region.select.scope == "global"
            if not region.parts and region.select.at_least is None
            for label in self._labels(region)
        }
        self._units = {region.name: UnitCut(region) for region in self._regions if region.parts}

    @property
    def is_global(self) -> bool:
        """True if a region is cut over all tensors at once."""
        return bool(self._streams) or any(_is_global(region) for region in self._regions)

    def take(self, layers: Iterator[tuple[int, str, Arrays]]) -> Iterator[int]:
        """Take a sweep's scores; yields each layer when its masks are made.

        Scores are used up: an array may be changed, and is not looked at again after the next one has come.
        """
        total: dict[str, NDArray[np.float32]] = {}
        cuts: dict[str, _Cuts] = {}
        for layer, language, scores in layers:
            if language == self._languages[0]:
                total, cuts = {}, {}
            self._add(total, scores)
            for region in self._regions:
                if "" not in self._labels(region):
                    self._cut_group(region, language, scores, cuts)
            if language == self._languages[-1]:
                for region in self._regions:
                    if "" in self._labels(region):
                        self._cut_group(region, "", total, cuts)
                self._finish_layer(cuts, scores.keys())
                self._draw_controls(total)
                yield layer

    def finish(self) -> dict[str, Region]:
        """Return the regions, now that every layer has come by."""
        for region in self._regions:
            if region.parts and _is_global(region):
                self._encode(region, self._units[region.name].choose(region.tensors))
            elif (region.name, self._labels(region)[0]) in self._streams:
                order = [info.name for info in region.tensors]
                cuts = {label: self._streams[region.name, label].finish(order) for label in self._labels(region)}
                self._keep(region, cuts)
        made = [*self._regions, *(control for control, _ in self._controls)]
        return {region.name: self._region(region) for region in made}

    def found(self, layer: Iterable[TensorInfo], name: str) -> Region:
        """Return what has been selected of a region in some tensors, to be kept against a crash."""
        masks = self._masks[name]
        return Region({info.name: info.shape for info in layer if info.name in masks}, masks.__getitem__)

    def restore(self, name: str, part: Region) -> None:
        """Take over what an earlier process had selected."""
        self._masks[name] |= {tensor: part[tensor] for tensor in part}

    @property
    def masks(self) -> dict[str, dict[str, Mask]]:
        """What has been selected of each region, by tensor."""
        return self._masks

    def take_over(self, masks: Mapping[str, Mapping[str, Mask]]) -> None:
        """Take over what another rank has selected, in other layers."""
        for name, found in masks.items():
            self._masks[name] |= found

    def _labels(self, region: RegionPlan) -> list[str]:
        return self._languages if region.by_language else [""]

    def _add(self, total: dict[str, NDArray[np.float32]], scores: Arrays) -> None:
        summing = [region for region in self._regions if "" in self._labels(region)]
        wanted = {info.name for region in (*summing, *(item for item, _ in self._controls)) for info in region.tensors}
        for name in wanted & scores.keys():
            if name in total:
                total[name] += scores[name]
            else:
                total[name] = scores[name] if len(self._languages) == 1 else scores[name].copy()

    def _cut_group(self, region: RegionPlan, label: str, scores: Arrays, cuts: dict[str, _Cuts]) -> None:
        """Cut the region's groups that these scores hold; a global one only takes them in."""
        assert region.select is not None
        mine = [info for info in region.tensors if info.name in scores]
        if region.parts:
            for info in mine:
                self._units[region.name].add(label, info.name, scores[info.name])
            return
        if (region.name, label) in self._streams:
            for info in mine:
                self._streams[region.name, label].take(info.name, scores[info.name])
            return
        there = cuts.setdefault(region.name, {}).setdefault(label, {})
        for group in region.groups(mine):
            there |= _cut(region, group, scores.__getitem__, "bottom" if region.select.kind == "bottom" else "top")

    def _finish_layer(self, cuts: Mapping[str, _Cuts], names: Collection[str]) -> None:
        for region in self._regions:
            if region.parts and not _is_global(region):
                for group in region.groups([info for info in region.tensors if info.name in names]):
                    self._encode(region, self._units[region.name].choose(group))
                self._units[region.name] = UnitCut(region)
            elif region.name in cuts:
                self._keep(region, cuts[region.name])

    def _draw_controls(self, total: Mapping[str, NDArray[np.float32]]) -> None:
        for control, draw in self._controls:
            for info in control.tensors:
                if info.name in total:
                    mask = self._masks[control.spec.control.of][info.name]  # type: ignore[union-attr]
                    of = Region({info.name: info.shape}, lambda _, mask=mask: mask)  # type: ignore[misc]
                    self._masks[control.name][info.name] = encode_indices(
                        draw(of, info.name, total.__getitem__), info.shape
                    )

    def _keep(self, region: RegionPlan, cuts: _Cuts) -> None:
        self._encode(region, cuts[""] if "" in cuts else _without_others(region, cuts))

    def _encode(self, region: RegionPlan, chosen: Mapping[str, Indices]) -> None:
        shapes = {info.name: info.shape for info in region.tensors}
        for name, indices in chosen.items():
            self._masks[region.name][name] = encode_indices(indices, shapes[name])

    def _region(self, region: RegionPlan) -> Region:
        masks = self._masks[region.name]
        order = [info for group in region.groups() for info in group]
        return Region({info.name: info.shape for info in order}, masks.__getitem__)
