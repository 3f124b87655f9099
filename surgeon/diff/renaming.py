"""Which tensor of one checkpoint lives under another name in the other: told by content, not by names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from surgeon.checkpoint.fingerprint import hash_tensor
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.storage import DTYPE_BITS, TensorInfo, read_bytes

SAMPLED = 64  # entries by which a tensor is known again that was renamed and changed


def find_renamed(
    lost: Sequence[TensorInfo], new: Sequence[TensorInfo]
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """Pair tensors that only one checkpoint names with those that only the other does.

    Returns:
        the pairs of equal bytes, and then those that have most of their entries in common, by the lost name.
    """
    equal = _equal(lost, new)
    taken = {info.name for info in equal.values()}
    alike = _alike([info for info in lost if info.name not in equal], [info for info in new if info.name not in taken])
    return equal, alike


def _equal(lost: Sequence[TensorInfo], new: Sequence[TensorInfo]) -> dict[str, TensorInfo]:
    """Pair tensors of equal dtype, shape and bytes; only those with a likely partner are hashed."""
    partners = {(info.dtype, info.shape) for info in new} & {(info.dtype, info.shape) for info in lost}
    holders: dict[tuple[Any, ...], list[TensorInfo]] = defaultdict(list)
    for info in new:
        if (info.dtype, info.shape) in partners:
            holders[info.dtype, info.shape, hash_tensor(info)].append(info)
    return _best(
        (1.0, info, other)
        for info in lost
        if (info.dtype, info.shape) in partners
        for other in holders.get((info.dtype, info.shape, hash_tensor(info)), ())
    )


def _alike(lost: Sequence[TensorInfo], new: Sequence[TensorInfo]) -> dict[str, TensorInfo]:
    """Pair tensors of equal dtype and shape that have most entries in common, judged by a sample of them."""
    holders: dict[tuple[Any, ...], list[TensorInfo]] = defaultdict(list)
    for info in new:
        for entry in _sample(info):
            holders[entry].append(info)
    pairs = []
    for info in lost:
        sample = _sample(info)
        votes = Counter(holder for entry in sample for holder in holders.get(entry, ()))
        pairs += [(count / len(sample), info, other) for other, count in votes.items() if 2 * count > len(sample)]
    return _best(pairs)


def _best(pairs: Iterable[tuple[float, TensorInfo, TensorInfo]]) -> dict[str, TensorInfo]:
    """Choose pairs from (likeness, lost, new), best first; among equals, as vectors of ones, names that end alike."""
    order = sorted(pairs, key=lambda item: (item[0], _shared_ending(item[1].name, item[2].name)), reverse=True)
    result: dict[str, TensorInfo] = {}
    taken: set[str] = set()
    for _, info, other in order:
        if info.name not in result and other.name not in taken:
            result[info.name] = other
            taken.add(other.name)
    return result


def _shared_ending(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False)))


def _sample(info: TensorInfo) -> list[tuple[Any, ...]]:
    """Return some entries, evenly spread, each with what it takes to stand in the same place elsewhere.

    None of a file on the Hub, where each would be a request.
    """
    if not info.nbytes or isinstance(info.path, RemoteFile):
        return []
    width = max(1, DTYPE_BITS[info.dtype] // 8)
    indices = sorted({int(at) for at in np.linspace(0, info.nbytes // width - 1, SAMPLED)})
    return [(info.dtype, info.shape, at, read_bytes(info, at * width, width).tobytes()) for at in indices]
