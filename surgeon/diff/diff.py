"""What differs between two checkpoints, tensor by tensor, however the tensors are spread over shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded, is_code
from surgeon.checkpoint.naming import Place, natural_key
from surgeon.checkpoint.storage import NUMPY_DTYPES, TensorInfo
from surgeon.checkpoint.ties import stored_copies
from surgeon.diff.entries import Change, Counter, chunks, fullest, measure, reader, stored_changes, total
from surgeon.diff.renaming import find_renamed
from surgeon.errors import present
from surgeon.operations.edits import check_regions_fit
from surgeon.region.dimensions import hidden_size, residual_axis
from surgeon.region.mask import Mask, encode_packed
from surgeon.region.region import Region

Kind = Literal["same", "changed", "renamed", "renamed_changed", "retyped", "reshaped", "missing", "extra"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STORED_OTHERWISE = "the same values, stored by other codes and scales"
BYTEWISE = "entries share bytes; compared byte by byte"


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
    change: Change = field(default_factory=Change)
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
        name = pair.name
        masks = [region[name] if name in region else None for region in regions.values()]  # noqa: SIM401 - has no `get`
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
    before, after = pair.before, pair.after
    if before is None or after is None or pair.kind == "reshaped":
        return pair
    if pair.kind == "renamed":  # found by equal content
        return replace(pair, change=Change(entries=before.numel), inside=(Change(),) * len(masks))
    if before.dtype not in NUMPY_DTYPES or after.dtype not in NUMPY_DTYPES:
        changes = (measure(left, right, np.flatnonzero(differ)) for _, left, right, differ in chunks(before, after))
        pair = replace(pair, change=total(changes), inside=(Change(),) * len(masks), note=BYTEWISE)
    else:
        pair = _compare_values(pair, masks, residual_axis(before.shape, pair.where, hidden))
    stored = stored_changes(before, after)
    if stored is not None and any(stored):
        pair = replace(pair, stored=stored, note=pair.note if pair.change.changed else STORED_OTHERWISE)
    changed = pair.change.changed or pair.stored is not None
    return replace(pair, kind="changed") if pair.kind == "same" and changed else pair


def _compare_values(pair: TensorDiff, masks: Sequence[Mask | None], axis: int | None) -> TensorDiff:
    """Count and measure what differs: in all, inside of each mask, and per row, column and residual dimension."""
    before, after = present(pair.before), present(pair.after)
    counter, readers = Counter(before.shape, axis), [reader(mask) for mask in masks]
    change, inside = Change(), [Change()] * len(masks)
    for start, left, right, differ in chunks(before, after):
        at = np.flatnonzero(differ)
        counter.add(at + start)
        change += measure(left, right, at)
        for i, read in enumerate(readers):
            chosen = read(start, differ.size)
            inside[i] += measure(left[chosen], right[chosen], np.flatnonzero(differ[chosen]))
    rows, columns = fullest(counter.rows), fullest(counter.columns)
    return replace(pair, change=change, inside=tuple(inside), rows=rows, columns=columns, hits=counter.hits)


def _changed_mask(pair: TensorDiff) -> Mask:
    """Find the changed entries of one tensor again; dense changes never become a list of indices."""
    before, after = present(pair.before), present(pair.after)
    packed = [(np.packbits(differ), np.count_nonzero(differ)) for _, _, _, differ in chunks(before, after)]
    bits = np.concatenate([data for data, _ in packed])
    return encode_packed(bits, int(sum(count for _, count in packed)), before.shape)
