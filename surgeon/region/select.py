"""From scores to a region: exactly the k highest, lowest, or random entries.

`k = int(fraction * numel)` of each tensor, of each layer's tensors together, of all tensors together, or of the
entries behind each output of a matrix; ties go to the tensor that comes first in natural order of names, then to
the lower flat index. The k-th score is found by counting: non-negative float32 sort like their bit patterns, so two
histograms of sixteen bits each give the exact threshold over any number of tensors with flat memory.

Scores are numpy's, or torch's on a device: then they are looked through there, and only packed masks come to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import InputError
from surgeon.region.mask import Indices, Mask, encode_indices, encode_packed, united
from surgeon.seeds import generator

Array = Any  # numpy's, or torch's on a device
ScoresOf = Callable[[str], Array]  # from a tensor's name to its scores, float32
Group = Sequence[tuple[str, int]]  # tensor names with their number of entries
End = Literal["top", "bottom"]
_CHUNK = 1 << 22  # scores that are looked at at a time: some tens of megabytes of keys and indices
_CHUNK_ON_DEVICE = 1 << 24  # the same there, where counting takes twelve bytes for each
_INFINITY = 0x7F800000  # the bits of infinity in float32; above it are not-a-number and what is negative
_CROWDED = 4  # when this many times k are kept, those behind the bound are dropped: seldom, and memory stays that of k


def select_extreme(scores: ScoresOf, group: Group, fraction: float, kind: End) -> dict[str, Indices]:
    """Return the sorted flat indices of the k highest or lowest scores of a group, per tensor.

    Raises:
        InputError: a score is negative or not a number.
    """
    wanted = int(fraction * sum(numel for _, numel in group))
    return {name: np.flatnonzero(on_host(chosen)) for name, chosen in select_count(scores, group, wanted, kind)}


def select_count(scores: ScoresOf, group: Group, wanted: int, kind: End) -> Iterator[tuple[str, Array]]:
    """Yield, tensor by tensor, which are the `wanted` highest or lowest scores of a group: flat booleans.

    Raises:
        InputError: a score is negative or not a number.
    """
    threshold, ties_wanted = _INFINITY if kind == "top" else 0, 0  # beyond which there is nothing
    if wanted:
        threshold, ties_wanted = _threshold(lambda: (keys_of(name, scores(name)) for name, _ in group), wanted, kind)
    for name, _ in group:
        keys = keys_of(name, scores(name))
        chosen = keys > threshold if kind == "top" else keys < threshold
        if ties_wanted:
            ties = _places(keys == threshold)[:ties_wanted]
            chosen[ties] = True
            ties_wanted -= len(ties)
        yield name, chosen


def select_in_outputs(name: str, scores: Array, fraction: float, kind: End, output_axis: int | None) -> Array:
    """Return which are the `int(fraction * inputs)` highest or lowest scores of each output: flat booleans.

    `scores` has the tensor's shape; `output_axis` runs over the outputs. It is one of the last two axes (those before
    them hold experts), or the first of more than two: a convolution's, where all other axes are inputs. A vector, whose
    axis is None, gets one cut as a whole.

    Raises:
        InputError: a score is negative or not a number.
    """
    keys = keys_of(name, scores).reshape(_as_matrices(tuple(scores.shape), output_axis))
    chosen = keys < 0  # nothing so far
    rows, lines = keys, chosen
    if output_axis is not None and output_axis == len(scores.shape) - 1:
        rows, lines = keys.swapaxes(1, 2), chosen.swapaxes(1, 2)
    wanted, step = int(fraction * rows.shape[2]), max(1, _CHUNK // max(1, rows.shape[2]))
    for matrix, of_matrix in zip(rows, lines, strict=True):
        for start in range(0, len(matrix), step):
            part, of_part = matrix[start : start + step], of_matrix[start : start + step]
            first = ~part if kind == "top" else part
            if isinstance(first, np.ndarray):
                np.put_along_axis(of_part, np.argsort(first, axis=1, kind="stable")[:, :wanted], True, axis=1)
            else:
                of_part.scatter_(1, first.sort(dim=1, stable=True).indices[:, :wanted], True)
    return chosen.reshape(-1)


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


class StreamingCut:
    """The k highest or lowest scores of many tensors that come by one after the other, exactly, in one pass.

    A histogram of the upper sixteen bits of all scores so far bounds the final threshold from one side, and the bound
    only tightens: an entry that is beyond it now can never be chosen, so it is dropped, and what is kept is a small
    multiple of k. Tensors may come in any order.
    """

    def __init__(self, wanted: int, kind: End) -> None:
        self._wanted, self._kind = wanted, kind
        self._histogram = np.zeros(1 << 16, dtype=np.int64)
        self._kept: dict[str, tuple[Indices, NDArray[np.uint32]]] = {}

    def take(self, name: str, scores: Array) -> None:
        """Take the scores of one tensor.

        Raises:
            InputError: a score is negative or not a number.
        """
        keys = keys_of(name, scores)
        self._histogram += on_host(_histogram([keys]))
        places = _places(self._may_be_chosen(keys))
        self._kept[name] = on_host(places), on_host(keys[places]).view(np.uint32)
        if sum(indices.size for indices, _ in self._kept.values()) > _CROWDED * self._wanted:
            for other, (indices, known) in self._kept.items():
                still = self._may_be_chosen(known)
                self._kept[other] = indices[still], known[still]

    def finish(self, order: Sequence[str]) -> dict[str, Indices]:
        """Return the sorted flat indices per tensor; `order` is that in which tensors are preferred on ties."""
        keys = np.concatenate([self._kept[name][1] for name in order] or [np.empty(0, np.uint32)])
        chosen = np.zeros(keys.size, dtype=np.bool_)
        if self._wanted:
            at = self._wanted - 1 if self._kind == "bottom" else keys.size - self._wanted
            threshold = np.partition(keys, at)[at]
            chosen = keys > threshold if self._kind == "top" else keys < threshold
            ties = np.flatnonzero(keys == threshold)
            chosen[ties[: self._wanted - int(np.count_nonzero(chosen))]] = True
        result, offset = {}, 0
        for name in order:
            indices = self._kept[name][0]
            result[name] = indices[chosen[offset : offset + indices.size]]
            offset += indices.size
        return result

    def _may_be_chosen(self, keys: Array) -> Array:
        """Return which keys may still be among the chosen: those with the upper sixteen bits of the last, or beyond."""
        if not self._wanted:
            return keys > _INFINITY  # none
        if int(self._histogram.sum()) < self._wanted:
            return keys <= _INFINITY  # all
        bound = _bin(self._histogram, self._wanted, self._kind)[0]
        return keys >= bound << 16 if self._kind == "top" else keys < (bound + 1) << 16


def keys_of(name: str, scores: Array) -> Array:
    """Return the scores of a tensor, flat, as integers that sort like them: uint32 of numpy, int32 of torch.

    Raises:
        InputError: a score is negative or not a number.
    """
    if isinstance(scores, np.ndarray):
        keys = np.ascontiguousarray(scores).reshape(-1).view(np.uint32)
        refused = keys.size and int(keys.max()) > _INFINITY
    else:
        import torch

        keys = scores.contiguous().reshape(-1).view(torch.int32)
        refused = keys.numel() and bool((keys.max() > _INFINITY) | (keys.min() < 0))
    if refused:  # not-a-number, or negative
        raise InputError(f"the scores of tensor '{name}' hold values that are negative or not numbers")
    return keys


def at_least(name: str, scores: Array, least: float) -> Array:
    """Return which scores of a tensor are at least so high: flat booleans.

    Raises:
        InputError: a score is negative or not a number.
    """
    return keys_of(name, scores) >= int(np.array(least, dtype=np.float32).view(np.uint32))


def _threshold(keys: Callable[[], Iterable[Array]], wanted: int, kind: End) -> tuple[int, int]:
    """Return the k-th key and how many entries that equal it are wanted."""
    high, wanted = _bin(_histogram(keys()), wanted, kind)
    low, wanted = _bin(_histogram(keys(), high), wanted, kind)
    return high << 16 | low, wanted


def _histogram(every: Iterable[Array], high: int | None = None) -> Array:
    """Count keys by their upper sixteen bits; with `high`, those that have these, by their lower sixteen."""
    counts: Array = 0
    for keys in every:
        here = isinstance(keys, np.ndarray)
        step = _CHUNK if here else _CHUNK_ON_DEVICE
        for start in range(0, len(keys), step):
            chunk = keys[start : start + step]
            bins = chunk >> 16 if high is None else chunk[chunk >> 16 == high] & 0xFFFF
            counts = counts + (np.bincount(bins, minlength=1 << 16) if here else bins.bincount(minlength=1 << 16))
    return np.zeros(1 << 16, dtype=np.int64) if isinstance(counts, int) else counts


def _bin(histogram: Array, wanted: int, kind: End) -> tuple[int, int]:
    """Return the bin that holds the k-th entry from the top or bottom, and which one of the bin's it is, from 1."""
    turned = np.flip(histogram) if isinstance(histogram, np.ndarray) else histogram.flip(0)
    ordered = turned if kind == "top" else histogram
    reached = ordered.cumsum(0)
    position = int((reached < wanted).sum())
    before = int(reached[position - 1]) if position else 0
    return (len(ordered) - 1 - position if kind == "top" else position), wanted - before


def _places(chosen: Array) -> Array:
    """Return the sorted flat indices of flat booleans, where these are."""
    return np.flatnonzero(chosen) if isinstance(chosen, np.ndarray) else chosen.nonzero()[:, 0]


def on_host(values: Array) -> NDArray[Any]:
    """Return an array as numpy's, also where it is torch's on a device."""
    array: NDArray[Any] = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    return array


def encode_chosen(chosen: Array, shape: tuple[int, ...]) -> Mask:
    """Encode flat booleans as the mask of a tensor; of a device's only the packed bits come down."""
    if isinstance(chosen, np.ndarray):
        return encode_indices(np.flatnonzero(chosen), shape)
    import torch

    bits = torch.nn.functional.pad(chosen.to(torch.uint8), (0, -chosen.numel() % 8)).view(-1, 8)
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=chosen.device)
    packed = (bits * places).sum(1, dtype=torch.uint8)  # in the order of `numpy.packbits`
    return encode_packed(packed.cpu().numpy(), int(chosen.sum()), shape)


def entry_count_in_outputs(shape: tuple[int, ...], fraction: float, output_axis: int | None) -> int:
    """Return how many entries `select_in_outputs` selects."""
    if output_axis is None:
        return int(fraction * math.prod(shape))
    _, first, last = _as_matrices(shape, output_axis)
    inputs = first if output_axis == len(shape) - 1 else last
    return math.prod(shape) // inputs * int(fraction * inputs) if inputs else 0


def _as_matrices(shape: tuple[int, ...], output_axis: int | None) -> tuple[int, int, int]:
    """Return a shape as matrices, one after the other, of whose axes one runs over outputs, the other over inputs."""
    if output_axis is None:
        return 1, 1, math.prod(shape)
    if output_axis < len(shape) - 2:
        return 1, math.prod(shape[: output_axis + 1]), math.prod(shape[output_axis + 1 :])
    return math.prod(shape[:-2]), shape[-2], shape[-1]
