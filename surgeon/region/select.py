"""From scores to a region: exactly the k highest, lowest, or random entries.

`k = int(fraction * numel)` of each tensor, of each layer's tensors together, of all tensors together, or of the
entries behind each output of a matrix; ties go to the tensor that comes first in natural order of names, then to
the lower flat index. The k-th score is found by counting: non-negative float32 sort like their bit patterns, so two
histograms of sixteen bits each give the exact threshold over any number of tensors with flat memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import InputError
from surgeon.region.region import Indices, united
from surgeon.seeds import generator

Scores = Callable[[str], NDArray[np.float32]]
Group = Sequence[tuple[str, int]]  # tensor names with their number of entries
_CHUNK = 1 << 22  # scores that are looked at at a time: some tens of megabytes of keys and indices
_INFINITY = 0x7F800000  # the bits of infinity in float32; above it are not-a-number and what is negative


def select_extreme(scores: Scores, group: Group, fraction: float, kind: Literal["top", "bottom"]) -> dict[str, Indices]:
    """Return the sorted flat indices of the k highest or lowest scores of a group, per tensor.

    Raises:
        InputError: a score is not a number.
    """
    return select_count(scores, group, int(fraction * sum(numel for _, numel in group)), kind)


def select_count(scores: Scores, group: Group, wanted: int, kind: Literal["top", "bottom"]) -> dict[str, Indices]:
    """Return the sorted flat indices of the `wanted` highest or lowest scores of a group, per tensor.

    Raises:
        InputError: a score is not a number.
    """
    if wanted == 0:
        return {name: np.empty(0, dtype=np.int64) for name, _ in group}
    threshold, ties_wanted = _threshold(scores, group, wanted, kind)
    result = {}
    for name, _ in group:
        keys = keys_of(name, scores(name))
        beyond = keys > threshold if kind == "top" else keys < threshold
        ties = np.flatnonzero(keys == threshold)[:ties_wanted]
        ties_wanted -= ties.size
        beyond[ties] = True
        result[name] = np.flatnonzero(beyond)
    return result


def select_in_outputs(
    name: str, scores: NDArray[np.float32], fraction: float, kind: Literal["top", "bottom"], output_axis: int | None
) -> Indices:
    """Return the sorted flat indices of the `int(fraction * inputs)` highest or lowest scores of each output.

    `scores` has the tensor's shape; `output_axis` runs over the outputs. It is one of the last two axes (those before
    them hold experts), or the first of more than two: a convolution's, where all other axes are inputs. A vector, whose
    axis is None, gets one cut as a whole.

    Raises:
        InputError: a score is not a number.
    """
    shape = as_matrices(scores.shape, output_axis)
    rows: NDArray[np.uint32] = keys_of(name, scores).reshape(shape)
    places: Indices = np.arange(scores.size, dtype=np.int64).reshape(shape)
    if output_axis is not None and output_axis == scores.ndim - 1:
        rows, places = rows.swapaxes(1, 2), places.swapaxes(1, 2)
    rows, places = rows.reshape(-1, rows.shape[-1]), places.reshape(-1, rows.shape[-1])
    wanted = int(fraction * rows.shape[1])
    chosen = np.full((rows.shape[0], wanted), -1, dtype=np.int64)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        order = np.argsort(~part if kind == "top" else part, axis=1, kind="stable")[:, :wanted]
        chosen[start : start + step] = np.take_along_axis(places[start : start + step], order, axis=1)
    return np.sort(chosen, axis=None)


def select_random(group: Group, fraction: float, seed: int, label: str = "") -> dict[str, Indices]:
    """Return exactly k uniformly drawn entries of a group, per tensor; the draw depends on (seed, names)."""
    total = sum(numel for _, numel in group)
    chosen = select_evenly(total, int(fraction * total), seed, label or group[0][0])
    result, offset = {}, 0
    for name, numel in group:
        low, high = np.searchsorted(chosen, (offset, offset + numel))
        result[name] = chosen[low:high] - offset
        offset += numel
    return result


def select_evenly(total: int, wanted: int, seed: int, label: str) -> Indices:
    """Return sorted distinct indices below `total`: the first `wanted` distinct values of the stream (seed, label)."""
    stream = generator(seed, label)
    if wanted > total // 2:  # drawing what to leave out takes fewer tries
        mask = np.ones(total, dtype=np.bool_)
        mask[_first_distinct(stream, total, total - wanted)] = False
        return np.flatnonzero(mask)
    return _first_distinct(stream, total, wanted)


def _first_distinct(stream: np.random.Generator, total: int, wanted: int) -> Indices:
    """Return them sorted; as many as are missing are drawn at a time, so that there are never too many."""
    drawn: Indices = np.empty(0, dtype=np.int64)
    while drawn.size < wanted:
        more = stream.integers(total, size=wanted - drawn.size, dtype=np.int64)
        drawn = united([drawn, np.sort(more)])
    return drawn


def keys_of(name: str, scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the scores of a tensor, flat, as integers that sort like them.

    Raises:
        InputError: a score is negative or not a number.
    """
    keys = np.ascontiguousarray(scores).reshape(-1).view(np.uint32)
    if keys.size and int(keys.max()) > _INFINITY:  # not-a-number, or negative
        raise InputError(f"the scores of tensor '{name}' hold values that are negative or not numbers")
    return keys


def _threshold(scores: Scores, group: Group, wanted: int, kind: str) -> tuple[int, int]:
    """Return the k-th key and how many entries that equal it are wanted."""
    high = np.zeros(1 << 16, dtype=np.int64)
    for keys in _chunks(scores, group):
        high += np.bincount(keys >> 16, minlength=1 << 16)
    high_bin, wanted = kth_bin(high, wanted, kind)
    low = np.zeros(1 << 16, dtype=np.int64)
    for keys in _chunks(scores, group):
        low += np.bincount(keys[keys >> 16 == high_bin] & 0xFFFF, minlength=1 << 16)
    low_bin, wanted = kth_bin(low, wanted, kind)
    return high_bin << 16 | low_bin, wanted


def kth_bin(histogram: NDArray[np.int64], wanted: int, kind: str) -> tuple[int, int]:
    """Return the bin that holds the k-th entry from the top or bottom, and which one of the bin's it is, from 1."""
    ordered = histogram[::-1] if kind == "top" else histogram
    reached = np.cumsum(ordered)
    position = int(np.searchsorted(reached, wanted))
    before = int(reached[position - 1]) if position else 0
    return (len(ordered) - 1 - position if kind == "top" else position), wanted - before


def _chunks(scores: Scores, group: Group) -> Iterator[NDArray[np.uint32]]:
    for name, _ in group:
        keys = keys_of(name, scores(name))
        for start in range(0, keys.size, _CHUNK):
            yield keys[start : start + _CHUNK]


def entry_count(shapes: Sequence[tuple[int, ...]], fraction: float) -> int:
    """Return `int(fraction * numel)` for tensors taken together."""
    return int(fraction * sum(math.prod(shape) for shape in shapes))


def entry_count_in_outputs(shape: tuple[int, ...], fraction: float, output_axis: int | None) -> int:
    """Return how many entries `select_in_outputs` selects."""
    if output_axis is None:
        return entry_count([shape], fraction)
    _, first, last = as_matrices(shape, output_axis)
    inputs = first if output_axis == len(shape) - 1 else last
    return math.prod(shape) // inputs * int(fraction * inputs) if inputs else 0


def as_matrices(shape: tuple[int, ...], output_axis: int | None) -> tuple[int, int, int]:
    """Return a shape as matrices, one after the other, of whose axes one runs over outputs, the other over inputs."""
    if output_axis is None:
        return 1, 1, math.prod(shape)
    if output_axis < len(shape) - 2:
        return 1, math.prod(shape[: output_axis + 1]), math.prod(shape[output_axis + 1 :])
    return math.prod(shape[:-2]), shape[-2], shape[-1]
