"""What differs between two checkpoints, tensor by tensor, entry by entry, in flat memory.

Entries are compared by their bits, so that a lost sign of zero or another not-a-number is a change too; how
large the changes are is computed in float64. Both files are read once, a piece at a time, however the
tensors are spread over shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded, is_code, parts_of, pieces_of
from surgeon.checkpoint.naming import Place, natural_key
from surgeon.checkpoint.storage import DTYPE_BITS, NUMPY_DTYPES, TensorInfo, read_pieces
from surgeon.checkpoint.ties import stored_copies
from surgeon.diff.renaming import find_renamed
from surgeon.errors import present
from surgeon.operations.edits import check_regions_fit
from surgeon.region.dimensions import along, hidden_size, residual_axis
from surgeon.region.mask import Indices, Mask, encode_packed
from surgeon.region.region import Region

Kind = Literal["same", "changed", "renamed", "renamed_changed", "retyped", "reshaped", "missing", "extra"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STORED_OTHERWISE = "the same values, stored by other codes and scales"
BYTEWISE = "entries share bytes; compared byte by byte"
CHUNK = 1 << 20  # entries held of each checkpoint, per thread; a multiple of eight, so that masks pack
_BLOCK = 1 << 13  # entries whose squares are summed at a time, in the processor's cache


@dataclass(frozen=True)
class Change:
    """Totals over some entries; add two to get the totals over both.

    `entries` were compared, `changed` differ. Of these `zeroed` became zero, `sign_flips` changed their sign,
    `not_finite` have no finite difference and are left out of `delta_square` (the sum of squared differences)
    and `largest` (the largest absolute difference). `base_square` is the sum of the first checkpoint's
    squares over all entries compared.
    """

    entries: int = 0
    changed: int = 0
    zeroed: int = 0
    sign_flips: int = 0
    not_finite: int = 0
    delta_square: float = 0.0
    base_square: float = 0.0
    largest: float = 0.0

    def __add__(self, other: Change) -> Change:
        return Change(
            self.entries + other.entries, self.changed + other.changed, self.zeroed + other.zeroed,
            self.sign_flips + other.sign_flips, self.not_finite + other.not_finite,
            self.delta_square + other.delta_square, self.base_square + other.base_square,
            max(self.largest, other.largest),
        )  # fmt: skip

    @property
    def l2(self) -> float:
        """Euclidean length of the difference."""
        return math.sqrt(self.delta_square)

    @property
    def relative(self) -> float | None:
        """`l2` as a share of the first checkpoint's length; None where that is zero or not finite."""
        if not self.base_square or not math.isfinite(self.base_square):
            return None
        return math.sqrt(self.delta_square / self.base_square)


def total(changes: Iterable[Change]) -> Change:
    """Add changes up."""
    return reduce(Change.__add__, changes, Change())


@dataclass(frozen=True)
class TensorDiff:
    """One tensor of both, or of one of the two.

    `before` and `after` are its header entries in the first and the second checkpoint. `inside` holds the
    change inside each region, in their order. `rows` and `columns` count changed entries per row and column
    of a matrix and keep the fullest as (index, changed); `hits` counts them per residual dimension. All of these count
    and measure values; `stored` are the codes and the scales that differ between tensors quantized in the same way.
    """

    kind: Kind
    before: TensorInfo | None
    after: TensorInfo | None
    where: Place
    change: Change = Change()
    inside: tuple[Change, ...] = ()
    rows: tuple[tuple[int, int], ...] = ()
    columns: tuple[tuple[int, int], ...] = ()
    hits: NDArray[np.int64] | None = field(default=None, compare=False)
    note: str | None = None
    stored: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The name in the first checkpoint, or in the second for an extra tensor."""
        return present(self.before or self.after).name


@dataclass(frozen=True)
class Diff:
    """All tensors of two checkpoints in natural order, and the keys in which their configs differ."""

    before: Checkpoint
    after: Checkpoint
    tensors: tuple[TensorDiff, ...]
    regions: tuple[str, ...]
    region_entries: tuple[int, ...]
    hidden_size: int | None
    config: Mapping[str, tuple[Any, Any]]

    @property
    def identical(self) -> bool:
        """True if both hold the same tensors, bit for bit."""
        return all(tensor.kind == "same" for tensor in self.tensors)

    @property
    def differs(self) -> bool:
        """True if a tensor differs, or the config, without which the same tensors are another model."""
        return not self.identical or bool(self.config)

    @property
    def total(self) -> Change:
        """The change over all tensors that could be compared."""
        return total(tensor.change for tensor in self.tensors)

    def inside(self, region: int) -> Change:
        """The change inside one of the regions."""
        return total(tensor.inside[region] for tensor in self.tensors if tensor.inside)

    def count(self, kind: Kind) -> int:
        """Number of tensors of a kind."""
        return sum(tensor.kind == kind for tensor in self.tensors)

    def by_role(self) -> dict[str, Change]:
        """The change per role."""
        return self._rolled_up(lambda tensor: tensor.where.role)

    def by_layer(self) -> dict[int | None, Change]:
        """The change per layer; None holds what is in no layer."""
        return self._rolled_up(lambda tensor: tensor.where.layer)

    def _rolled_up(self, key: Callable[[TensorDiff], Any]) -> dict[Any, Change]:
        result: dict[Any, Change] = {}
        for tensor in self.tensors:
            if tensor.change.entries:
                result[key(tensor)] = result.get(key(tensor), Change()) + tensor.change
        return result

    def dimensions(self, top: int = 12) -> list[tuple[int, int, int]]:
        """The residual dimensions with most changes: (dimension, changed entries, tensors with any)."""
        counted = [tensor.hits for tensor in self.tensors if tensor.hits is not None]
        if not counted:
            return []
        changed, tensors = np.sum(counted, axis=0), np.sum([hits > 0 for hits in counted], axis=0)
        order = np.lexsort((np.arange(changed.size), -changed))[:top]
        return [(int(i), int(changed[i]), int(tensors[i])) for i in order if changed[i]]

    def changed_region(self) -> Region:
        """The entries that differ, over the tensors that have any; a mask is found anew when asked for."""
        changed = {t.name: t for t in self.tensors if t.change.changed and t.note != BYTEWISE}
        shapes = {name: t.before.shape for name, t in changed.items() if t.before is not None}
        metadata = {"changed_from": self.before.source.name, "changed_to": self.after.source.name}
        return Region(shapes, lambda name: _changed_mask(changed[name]), metadata)


def compare_checkpoints(
    before: Checkpoint,
    after: Checkpoint,
    regions: Mapping[str, Region] | None = None,
    *,
    jobs: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> Diff:
    """Compare two checkpoints; `advance` is called with the entries done.

    Memory: about 60 MB per job, whatever the size of the tensors.

    Raises:
        RegionError: a region does not fit the first checkpoint.
    """
    regions = dict(regions or {})
    check_regions_fit(before, regions)
    shapes = {name: info.shape for name, info in before.tensors.items() if not is_code(info.dtype)}
    hidden = hidden_size(shapes, anatomy_of(before).places)

    def job(pair: TensorDiff) -> TensorDiff:
        masks = [_mask_of(region, pair.name) for region in regions.values()]
        done = _compare_tensor(pair, masks, hidden)
        advance(done.change.entries)
        return done

    pairs = sorted(_pairs(before, after), key=lambda pair: natural_key(pair.name))
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        tensors = tuple(pool.map(job, pairs))
    keys = sorted({*before.config, *after.config})
    config = {key: (before.config.get(key), after.config.get(key)) for key in keys}
    return Diff(
        before, after, tensors, tuple(regions), tuple(region.entries for region in regions.values()), hidden,
        {key: values for key, values in config.items() if values[0] != values[1]},
    )  # fmt: skip


def _pairs(before: Checkpoint, after: Checkpoint) -> Iterator[TensorDiff]:
    """Pair tensors by name, then those left over by content; `same` until their entries are compared."""
    lost = [info for name, info in before.tensors.items() if name not in after.tensors]
    new = [info for name, info in after.tensors.items() if name not in before.tensors]
    equal, alike = find_renamed(*([info for info in side if not isinstance(info, Coded)] for side in (lost, new)))
    places = anatomy_of(before).places
    for name, info in before.tensors.items():
        where, other = places[name], after.tensors.get(name)
        if other is not None:
            kind: Kind = "same" if info.dtype == other.dtype else "retyped"
            yield TensorDiff(kind if info.shape == other.shape else "reshaped", info, other, where)
        elif name in equal:
            yield TensorDiff("renamed", info, equal[name], where)
        elif name in alike:
            yield TensorDiff("renamed_changed", info, alike[name], where)
        else:
            yield TensorDiff("missing", info, None, where, note=_tie(before, name, after))
    taken = {info.name for info in (*equal.values(), *alike.values())}
    for info in new:
        if info.name not in taken:
            yield TensorDiff(
                "extra", None, info, anatomy_of(after).places[info.name], note=_tie(after, info.name, before)
            )


def _tie(owner: Checkpoint, name: str, other: Checkpoint) -> str | None:
    """Say so where a tensor that only one of the two stores is tied to one that both store."""
    shared = [member for member in stored_copies(owner.ties, name) if member != name and member in other.tensors]
    return f"tied to {shared[0]}, which both have" if shared else None


def _compare_tensor(pair: TensorDiff, masks: Sequence[Mask | None], hidden: int | None) -> TensorDiff:
    """Compare the entries of a pair of equal shape."""
    if pair.before is None or pair.after is None or pair.kind == "reshaped":
        return pair
    stored = stored_changes(pair.before, pair.after)
    done = _compare_values(pair, masks, hidden)
    if stored is None or not any(stored):
        return done
    note = None if done.change.changed else STORED_OTHERWISE
    return replace(done, kind="changed" if done.kind == "same" else done.kind, stored=stored, note=note or done.note)


def _compare_values(pair: TensorDiff, masks: Sequence[Mask | None], hidden: int | None) -> TensorDiff:
    if pair.before is None or pair.after is None:
        return pair
    if pair.kind == "renamed":  # found by equal content
        return replace(pair, change=Change(entries=pair.before.numel), inside=(Change(),) * len(masks))
    if pair.before.dtype not in NUMPY_DTYPES or pair.after.dtype not in NUMPY_DTYPES:
        changes = (_measure(left, right, np.flatnonzero(differ)) for _, left, right, differ in chunks(*_infos(pair)))
        return _named(replace(pair, change=total(changes), inside=(Change(),) * len(masks), note=BYTEWISE))
    counter = _Counter(pair.before.shape, residual_axis(pair.before.shape, pair.where, hidden))
    readers = [_reader(mask) for mask in masks]
    change, inside = Change(), [Change()] * len(masks)
    for start, left, right, differ in chunks(*_infos(pair)):
        at = np.flatnonzero(differ)
        counter.add(at + start)
        change += _measure(left, right, at)
        for i, read in enumerate(readers):
            chosen = read(start, differ.size)
            inside[i] += _measure(left[chosen], right[chosen], np.flatnonzero(differ[chosen]))
    rows, columns = _fullest(counter.rows), _fullest(counter.columns)
    return _named(
        replace(pair, change=change, inside=tuple(inside), rows=rows, columns=columns, hits=counter.hits)
    )  # fmt: skip


def _named(pair: TensorDiff) -> TensorDiff:
    return replace(pair, kind="changed") if pair.kind == "same" and pair.change.changed else pair


def _infos(pair: TensorDiff) -> tuple[TensorInfo, TensorInfo]:
    return present(pair.before), present(pair.after)


def _mask_of(region: Region, name: str) -> Mask | None:
    return region[name] if name in region else None  # noqa: SIM401 - a region has no `get`


def _reader(mask: Mask | None) -> Callable[[int, int], Indices]:
    """Return a function of (start, count) that gives the selected entries of a piece, counted from its start."""
    if mask is None:
        return lambda start, count: np.empty(0, dtype=np.int64)
    if mask.encoding == "bits":
        return lambda start, count: np.flatnonzero(np.unpackbits(mask.data[start // 8 :], count=count))
    indices = mask.indices()

    def read(start: int, count: int) -> Indices:
        low, high = np.searchsorted(indices, (start, start + count))
        return indices[low:high] - start

    return read


def _measure(left: NDArray[Any], right: NDArray[Any], at: Indices) -> Change:
    """Total up a piece of both checkpoints whose entries differ at positions `at`."""
    if left.dtype.kind == "c" or left.dtype.type is np.void:  # complex numbers and bare bytes have no magnitudes
        return Change(entries=left.size, changed=at.size)
    with np.errstate(all="ignore"):  # infinities are the user's, and counted below
        base_square = _square(left)
        if not at.size:
            return Change(entries=left.size, base_square=base_square)
        old, new = left[at].astype(np.float64), right[at].astype(np.float64)
        delta = new - old
        finite = np.isfinite(delta)
        delta = delta[finite]
        return Change(
            entries=left.size,
            changed=at.size,
            zeroed=int(np.count_nonzero((new == 0) & (old != 0))),
            sign_flips=int(np.count_nonzero(np.sign(old) * np.sign(new) < 0)),
            not_finite=at.size - delta.size,
            delta_square=float(np.dot(delta, delta)),
            base_square=base_square,
            largest=float(np.abs(delta).max(initial=0.0)),
        )


def _square(values: NDArray[Any]) -> float:
    """Return the sum of the squares in float64, over blocks that stay in the processor's cache.

    Narrow types go by way of float32, which holds all that they hold: straight to float64 is many times as slow.
    """
    result = 0.0
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        wide = (block.astype(np.float32) if block.itemsize < 4 else block).astype(np.float64)
        result += float(np.dot(wide, wide))
    return result


def chunks(
    before: TensorInfo, after: TensorInfo
) -> Iterator[tuple[int, NDArray[Any], NDArray[Any], NDArray[np.bool_]]]:
    """Yield (first flat index, entries before, entries after, where they differ), piece by piece.

    Entries of dtypes that share bytes are compared byte by byte. Between different dtypes values are compared.
    """
    infos = (before, after)
    known = all(info.dtype in NUMPY_DTYPES for info in infos)
    if known:
        step = _step(infos)
        readers: Sequence[Iterator[NDArray[Any]]] = [pieces_of(info, step) for info in infos]
    else:
        step, length = CHUNK, min(info.nbytes for info in infos)
        readers = [(piece.view("V1") for piece in read_pieces(info, step, length)) for info in infos]
    start = 0
    for left, right in zip(*readers, strict=True):
        if before.dtype == after.dtype or not known:
            bits = f"u{min(left.itemsize, 8)}"
            differ = left.view(bits) != right.view(bits)
        else:
            old, new = left.astype(np.float64), right.astype(np.float64)
            differ = (old != new) & ~(np.isnan(old) & np.isnan(new))
        yield start, left, right, differ
        start += left.size


def _step(infos: Sequence[TensorInfo]) -> int:
    """Return how many entries to hold of each: about as many as a codec likes best, a multiple of eight."""
    liked = [info.codec.piece(info) for info in infos if isinstance(info, Coded)]
    return math.lcm(liked[0], 8) if liked else CHUNK


def stored_changes(before: TensorInfo, after: TensorInfo) -> tuple[int, int] | None:
    """Count the codes, and the other stored values, such as scales, that differ between two quantized tensors.

    None if not both are quantized in the same way.
    """
    if not (isinstance(before, Coded) and isinstance(after, Coded) and before.codec == after.codec):
        return None
    pairs = list(zip(parts_of(before), parts_of(after), strict=False))
    if any((one.dtype, one.shape) != (other.dtype, other.shape) for one, other in pairs):
        return None
    counts = [
        _count_stored(one, other, before.codec.code_bits if number == 0 else None)
        for number, (one, other) in enumerate(pairs)
    ]
    return counts[0], sum(counts[1:])


def _count_stored(before: TensorInfo, after: TensorInfo, bits: int | None) -> int:
    """Count the entries of two stored tensors that differ; of `bits` each, of which some share a word."""
    width = DTYPE_BITS[before.dtype] // 8 or 1
    total = 0
    for left, right in zip(read_pieces(before, CHUNK), read_pieces(after, CHUNK), strict=True):
        differ = left ^ right
        if bits is not None and 8 % bits == 0:
            parts = range(0, 8, bits)
            total += sum(int(np.count_nonzero(differ >> np.uint8(at) & (1 << bits) - 1)) for at in parts)
        else:
            total += int(np.count_nonzero(differ.reshape(-1, width).any(axis=1)))
    return total


def _changed_mask(pair: TensorDiff) -> Mask:
    """Find the changed entries of one tensor again; dense changes never become a list of indices."""
    before, after = _infos(pair)
    packed = [(np.packbits(differ), np.count_nonzero(differ)) for _, _, _, differ in chunks(before, after)]
    bits = np.concatenate([data for data, _ in packed])
    return encode_packed(bits, int(sum(count for _, count in packed)), before.shape)


class _Counter:
    """Counts changed entries per row, column and residual dimension of one tensor."""

    def __init__(self, shape: tuple[int, ...], axis: int | None) -> None:
        self.shape, self.axis = shape, axis
        matrix = len(shape) > 1
        self.rows = np.zeros(math.prod(shape[:-1]) if matrix else 0, dtype=np.int64)
        self.columns = np.zeros(shape[-1] if matrix else 0, dtype=np.int64)
        self.hits = np.zeros(shape[axis], dtype=np.int64) if axis is not None else None

    def add(self, indices: Indices) -> None:
        if not indices.size:
            return
        if self.rows.size:
            rows = indices // self.columns.size
            counts = np.bincount(rows - rows[0])
            self.rows[rows[0] : rows[0] + counts.size] += counts
            self.columns += np.bincount(indices % self.columns.size, minlength=self.columns.size)
        if self.axis is not None and self.hits is not None:
            self.hits += np.bincount(along(indices, self.shape, self.axis), minlength=self.hits.size)


def _fullest(counts: NDArray[np.int64], top: int = 3) -> tuple[tuple[int, int], ...]:
    order = np.argsort(-counts, kind="stable")[:top]
    return tuple((int(i), int(counts[i])) for i in order if counts[i])
