"""Whole units of a model: rows, columns, attention heads, neurons of the feed-forward, experts; and their scores.

A row or column belongs to one tensor. The others span several, which is why units are numbered by group:

    head      a key-value head with the query heads that share it: its rows in q, k and v, its columns in the output
    neuron    its rows in gate and up, its entries in their biases, its column in down; of stacked experts each one's
    expert    all feed-forward matrices of one expert, of one layer's experts

What belongs to no unit, such as the bias of an output, is in none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.naming import Place, key_value_heads
from surgeon.region.mask import Indices

Unit = Literal["entry", "row", "column", "head", "neuron", "expert"]
Aggregate = Literal["sum", "mean", "maximum", "l2"]

# What makes the units' outputs, and what reads them.
_PROJECTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "head": (("attn.q", "attn.k", "attn.v"), "attn.o"),
    "neuron": (("mlp.gate", "mlp.up", "mlp.gate_up"), "mlp.down"),
}
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.")
_PERCENTILE = 0.95  # over units and languages: the bar of LAPE, as in its paper
_LARGEST = 1 << 24  # number of an expert, or rows of a tensor; those of models are far below


@dataclass(frozen=True)
class Parts:
    """The parts of units that lie in one tensor.

    Seen as an array of shape `view`, in row-major order, the tensor has at indices (i, ...) of `axes` entries of unit
    `labels[i, ...]` (int64, flat, below `count`) of the units of `group`, whatever the other axes.
    """

    group: str
    view: tuple[int, ...]
    labels: NDArray[np.int64]
    axes: tuple[int, ...] = (1,)

    @property
    def count(self) -> int:
        """One more than the highest unit with a part here."""
        return int(self.labels.max()) + 1 if self.labels.size else 0

    def sizes(self, count: int) -> NDArray[np.int64]:
        """Return the entries that each of `count` units has in the tensor."""
        return np.bincount(self.labels, minlength=count) * math.prod(self.view[axis] for axis in self.others)

    @property
    def others(self) -> tuple[int, ...]:
        """The axes that say nothing of the unit."""
        return tuple(axis for axis in range(len(self.view)) if axis not in self.axes)

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return for every entry the value of its unit, shape `view`; a view that must not be written to."""
        shape = [size if axis in self.axes else 1 for axis, size in enumerate(self.view)]
        return np.broadcast_to(values[self.labels].reshape(shape), self.view)

    def entries(self, chosen: NDArray[np.bool_]) -> Indices:
        """Return the sorted flat indices of the entries of chosen units."""
        return np.flatnonzero(self.spread(chosen))


def parts_of(unit: Unit, name: str, shape: tuple[int, ...], where: Place, config: Mapping[str, Any]) -> Parts | None:
    """Return which parts of units a tensor holds; None if it holds none, or it cannot be told which."""
    if math.prod(shape) == 0:
        return None
    if unit in ("row", "column"):
        return _line_parts(unit, name, shape)
    if unit == "expert":
        return _expert_parts(name, shape, where)
    if unit == "neuron" and is_stacked(name, shape, where):
        return _stacked_neurons(name, shape, where)
    axis = _unit_axis(unit, shape, where)
    if axis is None:
        return None
    length, group = shape[axis], _module(name)
    labels = np.arange(length, dtype=np.int64)
    if unit == "head":
        heads = where.heads or key_value_heads(config)
        if heads == 0 or length % heads:
            return None
        labels //= length // heads
    elif where.role == "mlp.gate_up":
        labels = _of_pairs(labels, length, where)
    return Parts(group, _view(shape, axis), labels)


def _of_pairs(labels: NDArray[np.int64], length: int, where: Place) -> NDArray[np.int64]:
    """Give a gate and its up the same number: gates come first, then ups, or each gate before its up."""
    return labels // 2 if where.alternating else labels % max(length // 2, 1)


def is_stacked(name: str, shape: tuple[int, ...], where: Place) -> bool:
    """True for what holds all experts of a layer, along its first axis."""
    return where.role.startswith("mlp.") and (len(shape) == 3 or (len(shape) == 2 and name.endswith("bias")))


def _stacked_neurons(name: str, shape: tuple[int, ...], where: Place) -> Parts | None:
    """Number the neurons of each expert after those of the expert before."""
    last, output = len(shape) - 1, where.output_axis or 1
    if where.role in ("mlp.gate", "mlp.up", "mlp.gate_up"):
        axis = output if last == 2 else last
    elif where.role == "mlp.down" and last == 2:
        axis = 3 - output
    else:
        return None
    labels = np.arange(shape[axis], dtype=np.int64)
    if where.role == "mlp.gate_up":
        labels = _of_pairs(labels, shape[axis], where)
    width = int(labels.max()) + 1
    every = np.arange(shape[0], dtype=np.int64)[:, None] * width + labels
    return Parts(_stack_of(name.rpartition(".")[0]), shape, every.reshape(-1), (0, axis))


def _stack_of(holder: str) -> str:
    """Return the name that a layer's stacked experts have in common, of a module that holds them, or one of them."""
    head, experts, _ = holder.partition(".experts")
    return head + experts if experts else holder.rpartition(".")[0]


def _line_parts(unit: Unit, name: str, shape: tuple[int, ...]) -> Parts | None:
    columns = shape[-1] if len(shape) > 1 else 1
    rows = math.prod(shape) // columns
    if max(rows, columns) > _LARGEST or (unit == "column" and len(shape) < 2):
        return None
    view = (1, rows, columns) if unit == "row" else (rows, columns, 1)
    return Parts(name, view, np.arange(view[1], dtype=np.int64))


def _expert_parts(name: str, shape: tuple[int, ...], where: Place) -> Parts | None:
    if not where.role.startswith("mlp."):
        return None
    match = _EXPERT.match(name)
    if match is not None and int(match[2]) < _LARGEST:
        return Parts(match[1], (1, 1, math.prod(shape)), np.array([int(match[2])], dtype=np.int64))
    if len(shape) != 3 or ".experts." not in name:
        return None
    group = name[: name.rindex(".experts.")] + ".experts"
    return Parts(group, (1, shape[0], math.prod(shape[1:])), np.arange(shape[0], dtype=np.int64))


def _unit_axis(unit: Unit, shape: tuple[int, ...], where: Place) -> int | None:
    """Return the axis of a projection along which heads or neurons lie: of outputs if it makes them, else of inputs."""
    made_by, read_by = _PROJECTIONS.get(unit, ((), ""))
    output = where.output_axis or 0
    if where.role in made_by and len(shape) < 3:
        return output
    return 1 - output if where.role == read_by and len(shape) == 2 else None


def _view(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _module(name: str) -> str:
    """Return the name of the module that holds the projection a tensor belongs to."""
    parts = name.split(".")
    return ".".join(parts[: -2 if parts[-1] in ("weight", "bias") else -1])


def unit_sizes(parts: Iterable[Parts]) -> dict[str, NDArray[np.int64]]:
    """Return the entries of each unit in all of some tensors, by group; 0 for numbers that no unit has."""
    result: dict[str, NDArray[np.int64]] = {}
    for part in parts:
        known = result.get(part.group, np.zeros(0, dtype=np.int64))
        count = max(part.count, known.size)
        result[part.group] = np.pad(known, (0, count - known.size)) + part.sizes(count)
    return result


def most_entries(sizes: Sequence[NDArray[np.int64]], wanted: int) -> tuple[int, bool]:
    """Return at most how many entries `wanted` units have, and whether it is exactly so many.

    `sizes` are the entries of each unit, of groups that share one cut.
    """
    every = np.sort(np.concatenate(list(sizes)))[::-1] if sizes else np.zeros(0, np.int64)
    chosen = every[:wanted]
    return int(chosen.sum()), bool(chosen.size == 0 or every[0] == every[-1])


class UnitScores:
    """Adds up what the entries of each unit score, tensor by tensor; `values` gives the units' own scores.

    Sums are float64 and taken in the order in which the tensors come.
    """

    def __init__(self, by: Aggregate) -> None:
        self._by = by
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._parts: dict[str, list[Parts]] = {}

    def add(self, parts: Parts, scores: NDArray[np.float32]) -> None:
        """Add one tensor's scores, non-negative, of any shape with the tensor's number of entries."""
        lines = _lines(scores.reshape(parts.view), parts.others, self._by)
        known = self._sums.get(parts.group, np.zeros(0))
        sums = np.pad(known, (0, max(parts.count - known.size, 0)))
        (np.maximum if self._by == "maximum" else np.add).at(sums, parts.labels, lines)
        self._sums[parts.group] = sums
        self._parts.setdefault(parts.group, []).append(parts)

    def values(self, group: str) -> NDArray[np.float32]:
        """Return the scores of a group's units, shape (units,)."""
        sums = self._sums[group]
        if self._by == "l2":
            sums = np.sqrt(sums)
        elif self._by == "mean":
            sums = sums / np.maximum(unit_sizes(self._parts[group])[group], 1)
        return sums.astype(np.float32)


def _lines(scores: NDArray[np.float32], others: tuple[int, ...], by: Aggregate) -> NDArray[np.float64]:
    """Return what the entries at each label add to its unit, flat; `others` are the axes without labels."""
    result: NDArray[np.float64]
    if by == "maximum":
        result = scores.max(axis=others).astype(np.float64)
    elif by == "l2":
        result = np.square(scores, dtype=np.float64).sum(axis=others)
    else:
        result = scores.sum(axis=others, dtype=np.float64)
    return result.reshape(-1)


def least_shared(by_language: Mapping[str, NDArray[np.float32]], own: str, fraction: float) -> NDArray[np.bool_]:
    """Return the units of one language by the entropy of their activation over languages (LAPE, arXiv 2402.16438).

    A unit's scores, divided by their sum over the languages, have an entropy. Units that in no language score above the
    95th percentile of all scores are left out; of the `int(fraction * units)` of lowest entropy, those belong to a
    language that score above that percentile in it. Ties go to the lower index. Each array has shape (units,).
    """
    scores = np.stack([values.astype(np.float64) for values in by_language.values()])
    bar = np.sort(scores, axis=None)[max(round(_PERCENTILE * scores.size) - 1, 0)] if scores.size else 0.0
    total = scores.sum(axis=0)
    share = np.divide(scores, total, out=np.zeros_like(scores), where=total > 0)
    entropy = -np.sum(share * np.log(share, out=np.zeros_like(share), where=share > 0), axis=0)
    entropy[~(scores > bar).any(axis=0)] = np.inf
    order = np.argsort(entropy, kind="stable")[: int(fraction * entropy.size)]
    kept = np.zeros(entropy.size, dtype=np.bool_)
    kept[order[np.isfinite(entropy[order])]] = True
    chosen: NDArray[np.bool_] = kept & (by_language[own] > bar)
    return chosen
