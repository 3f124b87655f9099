"""Stand-ins for stored tensors that remember, through transformers' conversions, where each entry of theirs goes.

A conversion is handed stand-ins in place of tensors, and does with them what it does: transpose, cut, join, reshape. Of
every value that comes out is known then which box of it holds which entries of which tensor, without any value or
memory: along an axis of a box, flat indices in the stored tensor grow by a vector of offsets that does not depend on
the other axes, whatever of these operations are done one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Offsets = NDArray[np.int64]


class Untraceable(Exception):
    """A conversion does something with a tensor that is not followed."""


@dataclass(frozen=True, eq=False)
class Box:
    """A box of a value that is made of entries of one stored tensor, of some `number`.

    It begins at `start`; its entry (i, j, ...) is the stored tensor's flat entry `base + offsets[0][i] + ...`, where
    offsets begin with 0.
    """

    number: int
    start: tuple[int, ...]
    base: int
    offsets: tuple[Offsets, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Its extent along each axis."""
        return tuple(len(along) for along in self.offsets)

    def with_axes(self, axes: Sequence[tuple[int, Offsets]]) -> Box:
        """Return it with other axes, each with its start and offsets."""
        return replace(self, start=tuple(at for at, _ in axes), offsets=tuple(along for _, along in axes))

    @property
    def axes(self) -> list[tuple[int, Offsets]]:
        """Start and offsets of every axis."""
        return list(zip(self.start, self.offsets, strict=True))


class Traced(torch.Tensor):
    """A tensor without values, of some shape, made up of `boxes`."""

    boxes: tuple[Box, ...]

    @staticmethod
    def made(shape: Sequence[int], boxes: Sequence[Box]) -> Traced:
        """Return one of these boxes."""
        result: Traced = torch.empty(tuple(shape), device="meta").as_subclass(Traced)
        result.boxes = tuple(boxes)
        return result

    @staticmethod
    def stored(number: int, shape: Sequence[int]) -> Traced:
        """Return the stand-in of a stored tensor."""
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        offsets = tuple(_along(size, stride) for size, stride in zip(shape, strides, strict=True))
        return Traced.made(shape, [Box(number, (0,) * len(shape), 0, offsets)])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Follow an operation, or refuse to."""
        name = getattr(func, "__name__", "")
        if name in _FOLLOWED:
            return _FOLLOWED[name](*args, **(kwargs or {}))
        if name in _ASKED:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        raise Untraceable(name)


_ASKED = {"__get__", "size", "dim", "numel", "is_floating_point", "__len__", "__hash__"}


@lru_cache(maxsize=4096)
def _along(size: int, stride: int) -> Offsets:
    return np.arange(size, dtype=np.int64) * stride


def _itself(value: Traced, *_: Any, **__: Any) -> Traced:
    return value


def _permute(value: Traced, order: Sequence[int]) -> Traced:
    boxes = [box.with_axes([box.axes[axis] for axis in order]) for box in value.boxes]
    return Traced.made([value.shape[axis] for axis in order], boxes)


def _transpose(value: Traced, dim0: int, dim1: int) -> Traced:
    order = list(range(len(value.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(value, order)


def _narrow(value: Traced, axis: int, start: int, length: int) -> Traced:
    axis %= len(value.shape)
    boxes = []
    for box in value.boxes:
        axes = box.axes
        at, along = axes[axis]
        first, stop = max(at, start), min(at + len(along), start + length)
        if first < stop:
            within = along[first - at : stop - at]
            axes[axis] = (first - start, within - within[0] if within[0] else within)
            boxes.append(replace(box.with_axes(axes), base=box.base + int(within[0])))
    return Traced.made([length if i == axis else size for i, size in enumerate(value.shape)], boxes)


def _split(value: Traced, sizes: int | Sequence[int], dim: int = 0) -> tuple[Traced, ...]:
    whole = value.shape[dim]
    lengths = [min(sizes, whole - at) for at in range(0, whole, sizes)] if isinstance(sizes, int) else list(sizes)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return tuple(_narrow(value, dim, at, length) for at, length in zip(starts, lengths, strict=True))


def _chunk(value: Traced, chunks: int, dim: int = 0) -> tuple[Traced, ...]:
    return _split(value, -(-value.shape[dim] // chunks), dim)


def _cat(values: Sequence[Traced], dim: int = 0) -> Traced:
    shape, boxes, reached = list(values[0].shape), [], 0
    dim %= len(shape)
    for value in values:
        if [*value.shape[:dim], *value.shape[dim + 1 :]] != [*shape[:dim], *shape[dim + 1 :]]:
            raise Untraceable("tensors of different shapes are joined")
        for box in value.boxes:
            start = tuple(at + reached if axis == dim else at for axis, at in enumerate(box.start))
            boxes.append(replace(box, start=start))
        reached += value.shape[dim]
    shape[dim] = reached
    return Traced.made(shape, boxes)


def _stack(values: Sequence[Traced], dim: int = 0) -> Traced:
    return _cat([_unsqueeze(value, dim) for value in values], dim)


def _unsqueeze(value: Traced, dim: int) -> Traced:
    shape = list(value.shape)
    dim %= len(shape) + 1
    shape.insert(dim, 1)
    return _reshape(value, shape)


def _squeeze(value: Traced, dim: int) -> Traced:
    shape = list(value.shape)
    if shape[dim] == 1:
        del shape[dim]
    return _reshape(value, shape)


def _reshape(value: Traced, *shape: Any) -> Traced:
    wanted = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
    if -1 in wanted:
        wanted[wanted.index(-1)] = math.prod(value.shape) // -math.prod(wanted)
    if math.prod(wanted) != math.prod(value.shape):
        raise Untraceable("another number of entries")
    groups = _groups(list(value.shape), wanted)
    boxes = []
    for box in value.boxes:
        axes: list[tuple[int, Offsets]] = []
        for old, new in groups:
            merged = _merged([box.axes[axis] for axis in old], [value.shape[axis] for axis in old])
            axes += _divided(*merged, [wanted[axis] for axis in new])
        boxes.append(box.with_axes(axes))
    return Traced.made(wanted, boxes)


def _groups(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """Pair runs of axes, by their numbers, that hold the same number of entries; the shortest such runs."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        if left and old[i] == 1 and not (right and new[j] == 1):
            right = []
        elif right and new[j] == 1 and not (left and old[i] == 1):
            left = []
        while math.prod(old[k] for k in left) != math.prod(new[k] for k in right):
            if math.prod(old[k] for k in left) < math.prod(new[k] for k in right):
                left.append(i + len(left))
            else:
                right.append(j + len(right))
        i, j = i + len(left), j + len(right)
        groups.append((left, right))
    return groups


def _merged(axes: Sequence[tuple[int, Offsets]], sizes: Sequence[int]) -> tuple[int, Offsets]:
    """Make one axis of several."""
    if not axes:
        return 0, _along(1, 0)
    start, along = axes[0]
    for (at, next_along), size in zip(axes[1:], sizes[1:], strict=True):
        if at or len(next_along) != size:
            if len(along) > 1:
                raise Untraceable("a part of an axis is joined with another axis")
            start, along = start * size + at, along + next_along
        else:
            start, along = start * size, (along[:, None] + next_along[None]).reshape(-1)
    return start, along


def _divided(start: int, along: Offsets, sizes: Sequence[int]) -> list[tuple[int, Offsets]]:
    """Make several axes, of some sizes, of one."""
    if len(sizes) == 1:
        return [(start, along)]
    if not sizes:  # an axis of one entry is left out
        return []
    inner = math.prod(sizes[1:])
    if start % inner or len(along) % inner:
        if start // inner != (start + len(along) - 1) // inner:
            raise Untraceable("an axis is divided within a part of it")
        return [(start // inner, _along(1, 0)), *_divided(start % inner, along, sizes[1:])]
    rows = along.reshape(-1, inner)
    first, rest = rows[:, 0], rows[0] - rows[0, 0]
    if not np.array_equal(rows, first[:, None] + rest[None]):
        raise Untraceable("an axis is divided otherwise than it was joined")
    return [(start // inner, first), *_divided(0, rest, sizes[1:])]


_FOLLOWED: dict[str, Callable[..., Any]] = {
    "contiguous": _itself, "clone": _itself, "detach": _itself, "to": _itself, "transpose": _transpose,
    "permute": lambda value, *dims: _permute(value, dims[0] if len(dims) == 1 else dims), "narrow": _narrow,
    "split": _split, "chunk": _chunk, "cat": _cat, "concat": _cat, "stack": _stack, "unsqueeze": _unsqueeze,
    "squeeze": _squeeze, "reshape": _reshape, "view": _reshape,
}  # fmt: skip
