"""Controls of a region: as many entries of the same tensors, drawn from those that are not zero.

Zeroing what is zero already changes nothing, so that a control which holds zeros is smaller than it looks. These hold
none; and with `removed` given they take as many entries as it needs to remove the same norm, however many those are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import present
from surgeon.region.region import Indices, Region
from surgeon.region.select import select_count, select_evenly
from surgeon.seeds import generator

Draw = Literal["random", "bottom", "magnitude"]


def draw_control(
    name: str,
    values: NDArray[Any],
    count: int,
    draw: Draw,
    *,
    seed: int = 0,
    region: str = "",
    scores: NDArray[np.float32] | None = None,
    removed: float | None = None,
) -> Indices:
    """Return sorted flat indices of `count` entries of one tensor that are not zero, or of all if there are fewer.

    `random` draws them evenly, by (seed, region, name), so that controls of other names are other draws; `bottom` takes
    those of the lowest `scores` (float32, non-negative, of
    the tensor's size), `magnitude` those of the largest absolute value; ties go to the lower index. With `removed`, a
    sum of squares, as many are taken instead, in the same order, as bring the sum of their squares nearest to it.
    Memory: some 16 bytes per entry that is not zero, 40 with `removed`.
    """
    values = values.reshape(-1)
    candidates = np.flatnonzero(values != 0)
    if removed is None:
        return candidates[_counted(name, values, candidates, min(count, candidates.size), draw, seed, region, scores)]
    if draw == "random":
        order = generator(seed, _label(region, name)).permutation(candidates.size)
    else:
        keys = _keys(values, candidates, draw, scores)
        order = np.argsort(keys if draw == "bottom" else -keys, kind="stable")
    count = _nearest(np.cumsum(values[candidates[order]].astype(np.float64) ** 2), removed)
    return np.sort(candidates[order[:count]])


def _counted(
    name: str, values: NDArray[Any], candidates: Indices, count: int, draw: Draw, seed: int, region: str,
    scores: NDArray[np.float32] | None,
) -> Indices:  # fmt: skip
    """Return which `count` of the candidates are drawn, sorted."""
    if draw == "random":
        return select_evenly(candidates.size, count, seed, _label(region, name))
    keys = _keys(values, candidates, draw, scores)
    group = [(name, candidates.size)]
    return select_count(lambda _: keys, group, count, "bottom" if draw == "bottom" else "top")[name]


def _label(region: str, name: str) -> str:
    return f"control:{region}:{name}"


def random_like(region: Region, seed: int = 0) -> Callable[[str], Indices]:
    """Return a function from tensor to as many sorted flat indices, drawn evenly from all: how chance alone crowds."""

    def draw(name: str) -> Indices:
        mask = region[name]
        return select_evenly(mask.numel, mask.entries, seed, f"like:{name}")

    return draw


def _keys(
    values: NDArray[Any], candidates: Indices, draw: Draw, scores: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    if draw == "magnitude":
        return np.abs(values[candidates].astype(np.float32))
    return present(scores).reshape(-1)[candidates]


def _nearest(sums: NDArray[np.float64], target: float) -> int:
    """Return how many entries to take, so that their growing sum is nearest to the target."""
    above = int(np.searchsorted(sums, target))
    if above == sums.size:
        return above
    below = float(sums[above - 1]) if above else 0.0
    return above + int(float(sums[above]) - target < target - below)
