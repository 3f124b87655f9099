"""How far two regions coincide: in entries, and in the rows and columns that their entries crowd into."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import RegionError
from surgeon.region.region import Region
from surgeon.seeds import generator


@dataclass(frozen=True)
class TensorOverlap:
    """One tensor of both regions: entries of the left, the right and both.

    `expected` is how many random entries in these numbers would have in common.
    `rows` and `columns` compare where the entries stand: with p and q the shares of each region's entries per
    row, the sum of min(p, q). 1.0 if both crowd into the same rows equally, 0.0 if they share none.
    `rows_by_chance` and `columns_by_chance` are the same of as many entries strewn at random (seed 0).
    """

    name: str
    numel: int
    left: int
    right: int
    shared: int
    expected: float
    rows: float
    columns: float
    rows_by_chance: float
    columns_by_chance: float

    @property
    def jaccard(self) -> float:
        """Shared entries as a share of all selected by either; 1.0 where neither selects any."""
        union = self.left + self.right - self.shared
        return self.shared / union if union else 1.0

    @property
    def by_chance(self) -> float:
        """The Jaccard index to expect of random entries in these numbers."""
        union = self.left + self.right - self.expected
        return self.expected / union if union else 1.0


@dataclass(frozen=True)
class Overlap:
    """All tensors that both regions have, and the entries per tensor that only one of them has."""

    tensors: tuple[TensorOverlap, ...]
    only_left: Mapping[str, int]
    only_right: Mapping[str, int]

    @property
    def identical(self) -> bool:
        """True if both select the same entries."""
        only = sum(self.only_left.values()) + sum(self.only_right.values())
        return not only and all(tensor.left == tensor.right == tensor.shared for tensor in self.tensors)

    @property
    def total(self) -> TensorOverlap:
        """The regions as a whole; rows and columns are means over the tensors of both, weighted by entries."""
        weights = [tensor.left + tensor.right for tensor in self.tensors]
        return TensorOverlap(
            "all tensors",
            sum(tensor.numel for tensor in self.tensors),
            sum(tensor.left for tensor in self.tensors) + sum(self.only_left.values()),
            sum(tensor.right for tensor in self.tensors) + sum(self.only_right.values()),
            sum(tensor.shared for tensor in self.tensors),
            sum(tensor.expected for tensor in self.tensors),
            _mean([tensor.rows for tensor in self.tensors], weights),
            _mean([tensor.columns for tensor in self.tensors], weights),
            _mean([tensor.rows_by_chance for tensor in self.tensors], weights),
            _mean([tensor.columns_by_chance for tensor in self.tensors], weights),
        )


def overlap(left: Region, right: Region) -> Overlap:
    """Compare two regions of one model, one tensor at a time.

    Raises:
        RegionError: they have no tensor in common, or one of different shapes.
    """
    shared = left & right  # which also makes sure that they fit
    if not len(shared):
        raise RegionError("the two regions have no tensor in common: they belong to different models")
    tensors = []
    for name, shape in left.shapes.items():
        if name in right:
            rows, columns = zip(left.hits(name), right.hits(name), strict=True)
            tensors.append(
                TensorOverlap(
                    name,
                    math.prod(shape),
                    left[name].entries,
                    right[name].entries,
                    np.intersect1d(left.indices(name), right.indices(name), assume_unique=True).size,
                    left[name].entries * right[name].entries / math.prod(shape) if math.prod(shape) else 0.0,
                    _coincidence(*rows),
                    _coincidence(*columns),
                    _strewn(name, "rows", *rows),
                    _strewn(name, "columns", *columns),
                )
            )
    return Overlap(
        tuple(tensors),
        {name: left[name].entries for name in left if name not in right},
        {name: right[name].entries for name in right if name not in left},
    )


@dataclass(frozen=True)
class Likeness:
    """The Jaccard index of two regions' entries, and the index to expect of random entries in their numbers."""

    jaccard: float
    by_chance: float


def likenesses(regions: Mapping[str, Region]) -> dict[tuple[str, str], Likeness]:
    """Compare each region with each that follows it, by name; each mask is decoded once.

    Tensors that only one of two regions has count as entries that they do not share.
    """
    pairs = list(itertools.combinations(regions, 2))
    shared, expected = dict.fromkeys(pairs, 0), dict.fromkeys(pairs, 0.0)
    shapes = {name: shape for region in regions.values() for name, shape in region.shapes.items()}
    for tensor, shape in shapes.items():
        numel = math.prod(shape)
        indices = {name: region.indices(tensor) for name, region in regions.items() if tensor in region}
        for i, left in enumerate(list(indices)[:-1]):
            mask = np.zeros(numel, dtype=np.bool_)
            mask[indices[left]] = True
            for right in list(indices)[i + 1 :]:
                shared[left, right] += int(np.count_nonzero(mask[indices[right]]))
                expected[left, right] += indices[left].size * indices[right].size / max(numel, 1)

    def index(pair: tuple[str, str], common: float) -> float:
        union = regions[pair[0]].entries + regions[pair[1]].entries - common
        return common / union if union else 1.0

    return {pair: Likeness(index(pair, shared[pair]), index(pair, expected[pair])) for pair in pairs}


def _coincidence(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    if not left.sum() or not right.sum():
        return float(left.sum() == right.sum())
    return float(np.minimum(left / left.sum(), right / right.sum()).sum())


def _strewn(name: str, axis: str, left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """Return the coincidence of as many entries that fall on any line alike."""
    random = generator(0, f"strewn:{axis}:{name}")
    even = np.full(left.size, 1 / max(left.size, 1))
    drawn = [random.multinomial(int(hits.sum()), even).astype(np.int64) for hits in (left, right)]
    return _coincidence(drawn[0], drawn[1])


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return float(np.average(values, weights=weights)) if sum(weights) else 1.0
