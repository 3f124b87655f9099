"""Where the entries of a region stand: by layer and role, by row and column, by residual dimension.

The residual stream has one width throughout a model. A matrix that reads it (q, k, v, gate, up) has one
input per residual dimension, one that writes it (attention output, MLP down) one output per dimension, and a
norm vector one entry. Counting a region's entries along that axis over all tensors shows the dimensions that
recur from layer to layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.naming import Place, places_of
from surgeon.region.mask import Indices, hits_of
from surgeon.region.region import Region
from surgeon.region.select import select_evenly

WRITERS = {"attn.o", "cross_attn.o", "linear_attn.o", "ssm.out", "conv.out", "mlp.down"}
READERS = {
    "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.q_a", "attn.kv", "attn.kv_a", "cross_attn.q",
    "linear_attn.q", "linear_attn.k", "linear_attn.v", "linear_attn.qkv", "linear_attn.in", "ssm.in", "conv.in",
    "mlp.gate", "mlp.up", "mlp.gate_up", "router", "embed", "head",
}  # fmt: skip
VECTORS = {"norm", "final_norm"} | WRITERS  # a writer's vector is its bias

# Shares of the rows (or columns) of a matrix at which `Spread` says how many of the entries they hold.
SPREAD_AT = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)

_MOST_COUNTED = 1 << 25  # residual dimensions times roles of layers; those of the largest models are below 2**24


@dataclass(frozen=True)
class Cell:
    """Entries selected and present in one role of one layer; `layer` None outside the layers.

    `rows` and `columns` are the shares of the entries that the fullest hundredth of the rows and of the columns
    of its matrices hold; None where there is no matrix, or no entry.
    """

    layer: int | None
    role: str
    entries: int
    numel: int
    rows: float | None
    columns: float | None


@dataclass(frozen=True)
class Spread:
    """How a role's entries crowd: the share held by the fullest `SPREAD_AT` of a matrix's rows and columns."""

    rows: tuple[float, ...]
    columns: tuple[float, ...]


@dataclass(frozen=True)
class Dimension:
    """One residual dimension: `hits` of its `slots` are selected, and it stands out in `tensors` of them.

    A dimension stands out in a tensor if it is among the fullest hundredth of that tensor's dimensions.
    """

    index: int
    hits: int
    slots: int
    tensors: int


@dataclass(frozen=True)
class Trace:
    """Along one role of one layer: for each residual dimension the share of its entries that are selected.

    `shares` is float64 of length hidden size; a dimension has as many entries there as the role has outputs (or
    inputs), a norm one.
    """

    layer: int | None
    role: str
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """A region by layer and role, by row and column, and by residual dimension, the fullest of them first."""

    cells: tuple[Cell, ...]
    spreads: Mapping[str, Spread]
    hidden_size: int | None
    dimensions: tuple[Dimension, ...]
    traces: tuple[Trace, ...]


def hidden_size(shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, Place]) -> int | None:
    """Return the width of the residual stream: the length that the matrices have most often in common."""
    axes: Counter[int] = Counter()
    expected: Counter[int] = Counter()
    for name, shape in shapes.items():
        if len(shape) < 2 or places[name].role not in WRITERS | READERS:
            continue
        axes.update(set(shape[-2:]))
        expected[shape[_usual_axis(shape, places[name])]] += 1
    if not axes:
        vectors = Counter(
            shape[0] for name, shape in shapes.items() if len(shape) == 1 and places[name].role in VECTORS
        )
        return vectors.most_common(1)[0][0] if vectors else None
    return max(axes, key=lambda length: (axes[length], expected[length]))


def residual_axis(shape: tuple[int, ...], where: Place, hidden: int | None) -> int | None:
    """Return the axis of a tensor that runs along the residual stream; None if there is none, or none is known."""
    if len(shape) == 1:
        return 0 if where.role in VECTORS and shape[0] == hidden else None
    if len(shape) < 2 or where.role not in WRITERS | READERS:
        return None
    fitting = [axis for axis in (len(shape) - 2, len(shape) - 1) if shape[axis] == hidden]
    return fitting[0] if len(fitting) == 1 else _usual_axis(shape, where) if fitting else None


def _usual_axis(shape: tuple[int, ...], where: Place) -> int:
    """Return the residual axis as the role has it; stacked experts count their last two axes."""
    first, last = len(shape) - 2, len(shape) - 1
    if where.role in ("embed", "head"):
        return last
    output = where.output_axis if len(shape) == 2 and where.output_axis is not None else first
    return output if where.role in WRITERS else first + last - output


def along(indices: Indices, shape: tuple[int, ...], axis: int) -> Indices:
    """Return the coordinate of flat indices along one axis."""
    coordinates: Indices = indices // math.prod(shape[axis + 1 :]) % shape[axis]
    return coordinates


def profile(
    region: Region,
    config: Mapping[str, Any],
    top: int = 24,
    entries: Callable[[str], Indices] | None = None,
    places: Mapping[str, Place] | None = None,
) -> Profile:
    """Profile a region; each mask is decoded once.

    Args:
        region: its tensors carry their names on disk.
        config: the model's config; only needed where names and shapes do not tell the orientation (GPT-2).
        top: number of residual dimensions to keep.
        entries: other entries of the same tensors, by name, that are profiled instead.
        places: what each tensor is, where it is known better than by its name.
    """
    entries = entries or region.indices
    places = places or places_of(region.shapes, config)
    hidden = hidden_size(region.shapes, places)
    cells = {(where.layer, where.role) for where in places.values()}
    if (hidden or 0) * len(cells) > _MOST_COUNTED:  # no model is like that, but a file may say so
        hidden = None
    tallies: dict[tuple[int | None, str], _Tally] = {}
    for name in region:
        where, shape = places[name], region.shapes[name]
        tally = tallies.setdefault((where.layer, where.role), _Tally(hidden or 0))
        tally.add(entries(name), shape, residual_axis(shape, where, hidden))
    return Profile(
        tuple(Cell(*key, t.entries, t.numel, *t.crowd.fullest()) for key, t in tallies.items()),
        _spreads({key: tally.crowd for key, tally in tallies.items()}),
        hidden,
        _dimensions(list(tallies.values()), top),
        tuple(Trace(*key, tally.hits / tally.slots) for key, tally in tallies.items() if tally.slots),
    )


def random_like(region: Region, seed: int = 0) -> Callable[[str], Indices]:
    """Return a function from tensor to as many sorted flat indices, drawn evenly from all: how chance alone crowds."""

    def draw(name: str) -> Indices:
        mask = region[name]
        return select_evenly(mask.numel, mask.entries, seed, f"like:{name}")

    return draw


def by_role(region: Region) -> dict[str, tuple[int, int]]:
    """Return by role, such as `attn.q`, how many entries are selected, and of how many."""
    roles: dict[str, tuple[int, int]] = {}
    for name, where in places_of(region.shapes, {}).items():
        entries, numel = roles.get(where.role, (0, 0))
        roles[where.role] = (entries + region[name].entries, numel + region[name].numel)
    return roles


class _Tally:
    """What is counted of the tensors of one role in one layer; `hits` and `outstanding` by residual dimension."""

    def __init__(self, hidden: int) -> None:
        self.entries = self.numel = self.slots = 0
        self.crowd = _Crowd()
        self.hits = np.zeros(hidden, dtype=np.int64)
        self.outstanding = np.zeros(hidden, dtype=np.int64)

    def add(self, indices: Indices, shape: tuple[int, ...], axis: int | None) -> None:
        self.entries += indices.size
        self.numel += math.prod(shape)
        if len(shape) > 1:
            self.crowd.add(indices, shape)
        if axis is not None:
            counts = np.bincount(along(indices, shape, axis), minlength=shape[axis])
            self.hits += counts
            self.slots += math.prod(shape) // shape[axis]
            self.outstanding[_fullest(counts)] += 1


def _dimensions(tallies: Sequence[_Tally], top: int) -> tuple[Dimension, ...]:
    """Return the residual dimensions that hold most entries over all layers and roles, fullest first."""
    if not tallies:
        return ()
    hits = np.sum([tally.hits for tally in tallies], axis=0)
    outstanding = np.sum([tally.outstanding for tally in tallies], axis=0)
    slots = sum(tally.slots for tally in tallies)
    order = np.argsort(-hits, kind="stable")[:top]
    return tuple(Dimension(int(i), int(hits[i]), slots, int(outstanding[i])) for i in order if hits[i])


def _fullest(counts: NDArray[np.int64]) -> Indices:
    """Return the fullest hundredth of the positions, at least one, all of them with hits."""
    wanted = max(1, counts.size // 100)
    order = np.argsort(-counts, kind="stable")[:wanted]
    fullest: Indices = order[counts[order] > 0]
    return fullest


class _Crowd:
    """Sums, over the matrices of a role, the entries held by the fullest shares of rows and of columns."""

    def __init__(self) -> None:
        self.total = 0
        self.held = [np.zeros(len(SPREAD_AT)), np.zeros(len(SPREAD_AT))]

    def add(self, indices: Indices, shape: tuple[int, ...]) -> None:
        columns = shape[-1]
        self.total += indices.size
        if indices.size:
            self.held[0] += _held(hits_of(indices // columns), math.prod(shape[:-1]))
            self.held[1] += _held(hits_of(indices % columns), columns)

    def spread(self) -> Spread:
        rows, columns = (tuple(round(float(value), 6) for value in held / self.total) for held in self.held)
        return Spread(rows, columns)

    def fullest(self) -> tuple[float | None, float | None]:
        if not self.total:
            return None, None
        spread, hundredth = self.spread(), SPREAD_AT.index(0.01)
        return spread.rows[hundredth], spread.columns[hundredth]


def _spreads(crowds: Mapping[tuple[int | None, str], _Crowd]) -> dict[str, Spread]:
    """Sum the layers of each role."""
    by_role: dict[str, _Crowd] = {}
    for (_, role), crowd in crowds.items():
        whole = by_role.setdefault(role, _Crowd())
        whole.total += crowd.total
        whole.held = [mine + theirs for mine, theirs in zip(whole.held, crowd.held, strict=True)]
    return {role: crowd.spread() for role, crowd in by_role.items() if crowd.total}


def _held(counts: NDArray[np.int64], positions: int) -> NDArray[np.float64]:
    """Return how many entries the fullest `SPREAD_AT` of the positions hold, interpolated between whole ones.

    `counts` are those of positions that hold any.
    """
    running = np.concatenate([[0], np.cumsum(np.sort(counts)[::-1])])
    held: NDArray[np.float64] = np.interp(np.array(SPREAD_AT) * positions, np.arange(running.size), running)
    return held
