"""The k highest or lowest scores of many tensors that come by one after the other, exactly, in one pass.

A histogram of the upper sixteen bits of all scores so far bounds the final threshold from one side, and the bound
only tightens: an entry that is beyond it now can never be chosen, so it is dropped, and what is kept is a small
multiple of k. Ties go to the tensor that comes first in natural order of names, then to the lower flat index, as in
`select.select_extreme`. Scores on a device are looked through there; only what is kept comes to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from surgeon.region.region import Indices
from surgeon.region.select import keys_of, kth_bin
from surgeon.region.select_on_device import histogram_on_device, keys_on_device, within_on_device

if TYPE_CHECKING:
    import torch

_CROWDED = 4  # when this many times k are kept, those behind the bound are dropped: seldom, and memory stays that of k


class StreamingCut:
    """Takes tensors' scores in any order; `finish` gives the flat indices of the `wanted` extreme ones per tensor."""

    def __init__(self, wanted: int, kind: Literal["top", "bottom"]) -> None:
        self._wanted, self._kind = wanted, kind
        self._histogram = np.zeros(1 << 16, dtype=np.int64)
        self._kept: dict[str, tuple[Indices, NDArray[np.uint32]]] = {}

    def take(self, name: str, scores: NDArray[np.float32] | torch.Tensor) -> None:
        """Take the scores of one tensor, non-negative.

        Raises:
            InputError: a score is not a number.
        """
        if isinstance(scores, np.ndarray):
            keys = keys_of(name, scores)
            self._histogram += np.bincount(keys >> 16, minlength=1 << 16)
            self._kept[name] = self._within(np.arange(keys.size, dtype=np.int64), keys)
        else:
            there = keys_on_device(name, scores)
            self._histogram += histogram_on_device(there)
            self._kept[name] = within_on_device(there, self._bound(), self._kind)
        if sum(kept.size for kept, _ in self._kept.values()) > _CROWDED * self._wanted:
            self._kept = {other: self._within(*kept) for other, kept in self._kept.items()}

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

    def _within(self, indices: Indices, keys: NDArray[np.uint32]) -> tuple[Indices, NDArray[np.uint32]]:
        """Keep what may still be among the chosen."""
        bound = self._bound()
        kept = keys >> 16 >= bound if self._kind == "top" else keys >> 16 <= bound
        return indices[kept], keys[kept]

    def _bound(self) -> int:
        """Return the upper sixteen bits beyond which nothing can be among the chosen."""
        if not self._wanted:
            return 0x7FFF if self._kind == "top" else -1
        if int(self._histogram.sum()) < self._wanted:
            return 0 if self._kind == "top" else 0x7FFE
        return kth_bin(self._histogram, self._wanted, self._kind)[0]
