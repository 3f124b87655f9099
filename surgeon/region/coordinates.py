"""Regions made of whole rows, columns, residual dimensions or single entries.

A row is what stands at one index of all axes but the last, a column what stands at one index of the last axis; a
vector has one entry per row and no columns. A residual dimension is one row or column in each matrix that reads or
writes the residual stream, and one entry in each norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.naming import Place, places_of
from surgeon.region.dimensions import along, hidden_size, residual_axis
from surgeon.region.mask import Indices, Mask, encode_indices, encode_mask
from surgeon.region.region import Region
from surgeon.seeds import generator


def lines(shape: tuple[int, ...], rows: Sequence[int], columns: Sequence[int]) -> Indices:
    """Return the flat indices of whole rows and columns.

    Raises:
        ValueError: one of them is outside the shape.
    """
    mask = _matrix(np.zeros(math.prod(shape), dtype=np.bool_), shape)
    for what, chosen, count in (("row", rows, mask.shape[0]), ("column", columns, mask.shape[1])):
        for index in chosen:
            if not 0 <= index < count:
                raise ValueError(f"{what} {index} is outside shape {list(shape)}")
    mask[list(rows)] = True
    mask[:, list(columns)] = True
    return np.flatnonzero(mask)


def entry(shape: tuple[int, ...], index: Sequence[int]) -> Indices:
    """Return the flat index of one entry.

    Raises:
        ValueError: the index does not fit the shape.
    """
    if len(index) != len(shape) or not all(0 <= i < length for i, length in zip(index, shape, strict=True)):
        raise ValueError(f"index {list(index)} is outside shape {list(shape)}")
    return np.array([np.ravel_multi_index(tuple(index), shape)], dtype=np.int64)


def fullest_lines(region: Region, rows: int, columns: int, control: int | None = None, label: str = "") -> Region:
    """Return, of each tensor, the `rows` and `columns` that hold most of a region's entries; ties go to the lower.

    With `control`, a seed, as many others are drawn at random instead, by seed and `label`.
    """

    def mask(name: str) -> Mask:  # made when it is asked for: a sweep over many counts keeps none of them
        shape = region.shapes[name]
        by_row, by_column = region.hits(name)
        top_rows = _top(by_row, rows, control, f"{label}:rows:{name}")
        top_columns = _top(by_column, columns if len(shape) > 1 else 0, control, f"{label}:columns:{name}")
        return encode_indices(lines(shape, top_rows.tolist(), top_columns.tolist()), shape)

    return Region(region.shapes, mask)


def residual_dimensions(
    region: Region,
    count: int,
    config: Mapping[str, Any],
    control: int | None = None,
    places: Mapping[str, Place] | None = None,
    label: str = "",
) -> Region:
    """Return the `count` residual dimensions that hold most of a region's entries, in all of its tensors.

    With `control`, a seed, as many others are drawn at random instead, by seed and `label`.
    """
    places = places or places_of(region.shapes, config)
    hidden = hidden_size(region.shapes, places)
    axes = {name: residual_axis(shape, places[name], hidden) for name, shape in region.shapes.items()}
    hits = np.zeros(hidden or 0, dtype=np.int64)
    for name, axis in axes.items():
        if axis is not None:
            hits += np.bincount(along(region.indices(name), region.shapes[name], axis), minlength=hits.size)
    top = _top(hits, count, control, f"{label}:residual")

    def mask(name: str) -> Mask:
        chosen, axis = np.zeros(region.shapes[name], dtype=np.bool_), axes[name]
        if axis is not None:
            np.moveaxis(chosen, axis, 0)[top] = True
        return encode_mask(chosen)

    return Region(region.shapes, mask)


def _top(hits: NDArray[np.int64], count: int, control: int | None, label: str) -> Indices:
    order = np.argsort(-hits, kind="stable")
    top, others = np.sort(order[:count]), np.sort(order[count:])
    if control is None or not count:
        return top
    return np.sort(generator(control, label).permutation(others)[:count])


def _matrix(flat: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    columns = shape[-1] if len(shape) > 1 else 1
    return flat.reshape(-1, columns)
