"""Scores that are there already, as the stream that cuts take: out of score files, or computed from weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from surgeon.regions.base import RegionPlan, Stream
from surgeon.scores.base import Reader


class _Lazy(Mapping[str, NDArray[np.float32]]):
    """The scores of some tensors, each read, or computed, when it is looked up."""

    def __init__(self, names: Sequence[str], reader: Reader) -> None:
        self._names, self._reader = dict.fromkeys(names), reader

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self._names:
            raise KeyError(name)
        return self._reader(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stream_of(readers: Mapping[str, Reader], plans: Sequence[RegionPlan]) -> Stream:
    """Yield the scores of all tensors of some regions, unit by unit, each language's `reader` in turn.

    Tensors that share a cut are in one unit: mostly a tensor, else a layer, so that memory is that of the sum over
    languages in one unit.
    """
    for unit, names in enumerate(_units(plans)):
        for language, reader in readers.items():
            yield unit, language, _Lazy(names, reader)


def _units(plans: Sequence[RegionPlan]) -> list[list[str]]:
    """Return the tensors in units: one each, or those of a layer if some cut, or unit of a model, spans tensors."""
    spans = any(plan.parts or (plan.scope is not None and plan.scope.spans_tensors) for plan in plans)
    found: dict[object, dict[str, None]] = {}
    for plan in plans:
        for info in plan.tensors:
            layer = plan.places[info.name].layer
            found.setdefault(layer if spans and layer is not None else info.name, {})[info.name] = None
    return [list(names) for names in found.values()]
