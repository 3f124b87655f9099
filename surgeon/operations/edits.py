"""What a variant changes in one tensor: flat indices and new values, in the tensor's own dtype.

An edit is computed from the source's bytes and the operations in their order, and then serves both the
writer, which pokes it into a copied shard, and the verification, which pokes it into a loaded model. Of a quantized
tensor the codec makes it one of codes and scales; what these decode to is the edit, so that both see the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded, Rounding, StoredEdit, Totals, parts_of
from surgeon.checkpoint.storage import TensorInfo
from surgeon.checkpoint.ties import stored_copies
from surgeon.errors import CheckpointError, InputError, RegionError, did_you_mean
from surgeon.operations import Operation, Target, open_donor
from surgeon.region.mask import Indices, united
from surgeon.region.patch import Patch
from surgeon.region.region import Region


@dataclass(frozen=True)
class EditCount(Totals):
    """How much was edited: entries acted on, those whose bits really changed, and the change's square.

    `square` is the sum of the squared differences, in float64; inf or nan where values are. `rounding` is what encoding
    quantized tensors added to it.
    """

    entries: int = 0
    changed: int = 0
    square: float = 0.0
    rounding: Rounding = field(default_factory=Rounding)

    @property
    def norm(self) -> float:
        """The L2 norm of the difference; of zeroed entries, the norm that was removed."""
        return math.sqrt(max(self.square, 0.0))  # less than that is only what a damaged file says


@dataclass(frozen=True)
class Edit:
    """Entries of one tensor that get new values; `indices` are sorted and flat, the rest of the same length.

    Of a quantized tensor they are also the other entries of blocks that got another scale; `acted` were acted on.
    """

    indices: Indices
    values: NDArray[Any]
    before: NDArray[Any]
    acted: int | None = None
    rounding: Rounding = field(default_factory=Rounding)

    @property
    def entries(self) -> int:
        """How many entries the operations acted on."""
        return self.indices.size if self.acted is None else self.acted

    def count(self) -> EditCount:
        """Count what the edit changes."""
        bits = f"u{self.values.dtype.itemsize}"
        changed = int(np.count_nonzero(self.before.view(bits) != self.values.view(bits)))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = self.values.astype(np.float64) - self.before.astype(np.float64)
            return EditCount(self.entries, changed, float(difference @ difference), self.rounding)


def check_regions_fit(checkpoint: Checkpoint, regions: Mapping[str, Region]) -> None:
    """Check that every tensor of every region is in the checkpoint with the same shape.

    Raises:
        RegionError: one is not.
    """
    for label, region in regions.items():
        for name in region:
            info = checkpoint.tensors.get(name)
            if info is None:
                raise RegionError(
                    f"region '{label}' has tensor '{name}', which {checkpoint.where} has not"
                    f"{did_you_mean(name, checkpoint.tensors)}"
                )
            if info.shape != region.shapes[name]:
                raise RegionError(
                    f"region '{label}' has tensor '{name}' of shape {list(region.shapes[name])}; in "
                    f"{checkpoint.where} its shape is {list(info.shape)}: the region belongs to another model"
                )


def check_donor(checkpoint: Checkpoint, donor: str, region: Region) -> None:
    """Check that another checkpoint, or a patch, has every tensor of a region, in the same shape.

    A patch must also have the dtype of the checkpoint's tensor; whether it was made for the checkpoint's bytes
    is for `check_patch_base` to say.

    Raises:
        CheckpointError: it has not, or it cannot be opened.
    """
    other = open_donor(donor)
    for name, shape in region.shapes.items():
        info = other.tensors.get(name)
        stored = checkpoint.tensors.get(name)
        if isinstance(other, Patch) and info is not None and stored is not None and info.dtype != stored.dtype:
            raise CheckpointError(
                f"'{name}' is {info.dtype} in {donor} and {stored.dtype} in {checkpoint.source.name}: the patch was "
                "made for another checkpoint"
            )
        if info is None or info.shape != shape:
            has = "no such tensor" if info is None else f"it in shape {list(info.shape)}"
            raise CheckpointError(
                f"'{name}' of shape {list(shape)} cannot be taken from {donor}, which has {has}: it must be a "
                f"checkpoint of the same architecture as {checkpoint.source.name}"
            )


def check_patch_base(checkpoint: Checkpoint, patch: Patch, region: Region, hashes: Mapping[str, str]) -> None:
    """Check that a patch was made for these very tensors; `hashes` are the SHA-256 of the checkpoint's.

    Raises:
        CheckpointError: a tensor's bytes are others, or the patch treats stored copies of a tied weight unalike.
    """
    for name in region.shapes:
        if hashes[name] != patch.tensors[name].base_sha256:
            raise CheckpointError(
                f"{patch.path}: was made for another base: tensor '{name}' of {checkpoint.source.name} has SHA-256 "
                f"{hashes[name][:12]}..., the patch expects {patch.tensors[name].base_sha256[:12]}...; use the "
                "checkpoint and revision that the patch names (`surgeon inspect` shows them)"
            )
        for twin in stored_copies(checkpoint.ties, name):
            if twin not in region or not (
                np.array_equal(patch.region.indices(name), patch.region.indices(twin))
                and patch.values(name).tobytes() == patch.values(twin).tobytes()
            ):
                raise CheckpointError(
                    f"{patch.path}: changes '{name}' and not '{twin}', which {checkpoint.source.name} ties to it and "
                    "stores beside it; set `tie_word_embeddings` to false in the base's config to have both apart"
                )


@dataclass(frozen=True)
class Surgery:
    """What is done to which model: operations, in their order, on regions of a checkpoint."""

    checkpoint: Checkpoint
    operations: Sequence[Operation]
    regions: Mapping[str, Region]

    @cached_property
    def touched(self) -> list[str]:
        """The tensors that the operations may change, stored copies of tied weights included."""
        named = {name for operation in self.operations for label in operation.regions for name in self.regions[label]}
        ties = self.checkpoint.ties
        return [name for name in self.checkpoint.tensors if named.intersection(stored_copies(ties, name))]

    @cached_property
    def counted(self) -> Collection[str]:
        """Those of which an edit counts: of stored copies of a tied weight, the first."""
        first: dict[str, str] = {}
        for name in self.touched:
            if name not in first:
                first |= dict.fromkeys(stored_copies(self.checkpoint.ties, name), name)
        return dict.fromkeys(first.values())

    def stored(self, name: str) -> tuple[TensorInfo, ...]:
        """Return the stored tensors that the operations may change of a logical one, that of its codes first.

        Zeros need no other scale.
        """
        info = self.checkpoint.info(name)
        zeros = all(operation.zeroes for operation in self.operations)
        exact = isinstance(info, Coded) and info.codec.zero_is_exact and zeros
        return parts_of(info)[:1] if exact or self.checkpoint.written_plain else parts_of(info)

    def most_blocks(self, entries: int) -> int | None:
        """Return at most how many blocks operations on so many entries encode anew, other than as exact zeros.

        None if no touched tensor is quantized, or variants are not.
        """
        infos = [info for info in map(self.checkpoint.info, self.touched) if isinstance(info, Coded)]
        if not infos or self.checkpoint.written_plain:
            return None
        return min(entries, sum(info.codec.blocks(info) for info in infos if len(self.stored(info.name)) > 1))

    def indices(self, name: str) -> Indices:
        """Return the sorted flat indices of one tensor that any operation acts on, or changes by encoding."""
        if self._encoded(name) is not None:
            return self.edit(name).indices
        return united([step.indices for step in self._steps(name)])

    def edit(self, name: str) -> Edit:
        """Compute what the operations make of one tensor.

        Memory: a few times the number of selected entries; the tensor itself is a view of the mapped file. Of a
        quantized tensor also a few times the entries of blocks that get another scale.

        Raises:
            InputError: an operation makes finite entries infinite in the tensor's dtype, or none of the format's codes.
        """
        return self.stored_edits(name)[0]

    def stored_edits(self, name: str) -> tuple[Edit, Mapping[str, StoredEdit]]:
        """Compute the same, and what it is in stored tensors, by their names."""
        checkpoint, steps, info = self.checkpoint, self._steps(name), self._encoded(name)
        indices = united([step.indices for step in steps])
        before = checkpoint.entries(name, indices)
        if info is None:
            values = _new_values(checkpoint, name, steps, indices, before)
            return Edit(indices, values, before), {name: StoredEdit(indices, values)}
        wanted = _new_values(checkpoint, name, steps, indices, before.astype(np.float64))
        encoded = info.codec.encode(info, checkpoint, indices, wanted)
        if encoded.indices.size != indices.size:
            before = checkpoint.entries(name, encoded.indices)
        if np.count_nonzero(np.isfinite(encoded.values)) < np.count_nonzero(np.isfinite(before)):
            raise InputError(f"new entries of tensor '{name}' are too large for {info.dtype}; use smaller values")
        return Edit(encoded.indices, encoded.values, before, indices.size, encoded.rounding), encoded.stored

    def count(self) -> EditCount:
        """Count what the operations change in the model, in a pass over what they touch.

        Raises:
            InputError: see `edit`.
        """
        return sum((self.edit(name).count() for name in self.counted), EditCount())

    def _encoded(self, name: str) -> Coded | None:
        """Return a tensor if edits of it are made in its format: it has one, and the variant is to keep it."""
        info = self.checkpoint.info(name)
        return info if isinstance(info, Coded) and not self.checkpoint.written_plain else None

    def _steps(self, name: str) -> list[_Step]:
        """Return the operations that act on a tensor.

        Stored copies of a tied weight go by the first of their names that the region has, so that seeded operations
        treat them alike; what the region selects of any copy is selected of all.
        """
        group, steps = stored_copies(self.checkpoint.ties, name), []
        for operation in self.operations:
            used = {label: self.regions[label] for label in operation.regions}
            members = [alias for alias in group if any(alias in region for region in used.values())]
            if members:
                entries = {
                    label: united([region.indices(alias) for alias in group if alias in region])
                    for label, region in used.items()
                }
                parts = tuple(entries[label] for label in operation.regions)
                steps.append(_Step(operation, members[0], united(parts), parts))
        return steps


@dataclass(frozen=True)
class _Step:
    """An operation that acts on a tensor, the name its regions know the tensor by, and their entries in it.

    `indices` are those of all its regions, `parts` those of each.
    """

    operation: Operation
    name: str
    indices: Indices
    parts: tuple[Indices, ...]


def _new_values(
    checkpoint: Checkpoint, name: str, steps: Sequence[_Step], indices: Indices, before: NDArray[Any]
) -> NDArray[Any]:
    """Let operations act, in their order, on entries whose values are `before`; shape and dtype stay."""
    info, values = checkpoint.info(name), before.copy()
    source = partial(checkpoint.array, name) if isinstance(info, Coded) else checkpoint.array(name)
    finite = bool(np.isfinite(values).all())
    for step in steps:
        operation, chosen = step.operation, step.indices
        at = slice(None) if chosen.size == indices.size else np.searchsorted(indices, chosen)
        values[at] = operation.new_values(values[at], Target(step.name, chosen, source, step.parts))
        if operation.donors:  # the donor's own infinities are what was asked for
            finite = bool(np.isfinite(values).all())
        elif finite and not np.isfinite(values).all():
            raise InputError(
                f"'{', '.join(operation.described())}' makes {np.count_nonzero(~np.isfinite(values))} entries of "
                f"tensor '{name}' too large for its dtype {values.dtype.name}; use smaller values"
            )
    return values
