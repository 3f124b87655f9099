"""Entries of stored tensors by flat indices in any order: read, told apart, and edits of them put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Indices, Stored
from surgeon.checkpoint.storage import TensorInfo
from surgeon.formats.base import StoredEdit

_READ, _MARKED = 8, 4  # a range is worth it up to so many times the entries in it


def gathered(read: Stored, info: TensorInfo, at: Indices) -> NDArray[Any]:
    """Return entries by flat indices in any order, some perhaps more than once; shape (n,), in the stored dtype.

    Where they lie close together all between them is read, which is faster than to sort them.
    """
    values: NDArray[Any]
    if at.size and int(np.ptp(at)) < _READ * at.size:
        first = int(at.min())
        values = read.span(info, first, int(at.max()) + 1)[at - first]
    else:
        found, which = np.unique(at, return_inverse=True)
        values = read.entries(info, found)[which]
    return values


def distinct(at: Indices) -> tuple[Indices, Indices]:
    """Return what `np.unique` with its inverse returns, without sorting where the numbers lie close together."""
    if not at.size or int(np.ptp(at)) >= _MARKED * at.size:
        found, which = np.unique(at, return_inverse=True)
        return found, which
    first = int(at.min())
    there = np.zeros(int(at.max()) - first + 1, dtype=bool)
    there[at - first] = True
    return np.flatnonzero(there) + first, (np.cumsum(there) - 1)[at - first]


def united(read: Stored, info: TensorInfo, edits: Sequence[StoredEdit]) -> StoredEdit:
    """Return one edit for several of the same tensor, no two of which change the same bit."""
    if len(edits) == 1:
        return edits[0]
    at = np.concatenate([edit.indices for edit in edits])
    order = np.argsort(at, kind="stable")
    at, values = at[order], np.concatenate([edit.values for edit in edits])[order]
    first = np.flatnonzero(np.diff(at, prepend=-1))
    if first.size == at.size:
        return StoredEdit(at, values)
    bits, found = f"u{values.dtype.itemsize}", at[first]
    before = read.entries(info, found).view(bits)
    changed = values.view(bits) ^ np.repeat(before, np.diff(first, append=at.size))
    return StoredEdit(found, (before ^ np.bitwise_xor.reduceat(changed, first)).view(values.dtype))
