"""Regions: a set of entries per tensor, its algebra, its statistics and its file.

A region knows the tensors of its scope (also those where it selects nothing) with their shapes. Masks are
kept encoded, about 0.09 bits per parameter at 1 % density, and decoded one tensor at a time; regions read
from a file or made by algebra are lazy, so that memory follows the largest tensor and not the model.

The file format is described in docs/region-format.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.plain_json import NotPlain, as_object, parse_json
from surgeon.checkpoint.storage import OpenFile, read_header, write_stream
from surgeon.errors import CheckpointError, RegionError
from surgeon.inside import replacing
from surgeon.notebook import table, view
from surgeon.region.mask import (
    PATCH_FORMAT,
    Indices,
    Mask,
    check_encoding,
    described,
    encode_indices,
    encode_mask,
    mask_names,
    read_table,
    united,
)

FORMAT = "surgeon-region"
FORMAT_VERSION = "1"
_SHOWN = 12  # tensors in a notebook: one layer's
_MOST_LINES = 1 << 26  # rows or columns that are counted one by one: half a gigabyte of counts


class Region:
    """A set of entries over named tensors. Combine with `&`, `|`, `-`, `~`; names are those on disk.

    `&` keeps the tensors that both have; `|` and `-` keep the left one's, `|` also those only the right one
    has; `~` takes the complement inside the region's own tensors.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        load: Callable[[str], Mask],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.shapes = dict(shapes)
        self.metadata = dict(metadata or {})
        self._load = load
        self._is_counted = False  # that is, counting its entries takes no work to speak of

    @classmethod
    def from_indices(
        cls,
        indices: Mapping[str, Indices],
        shapes: Mapping[str, tuple[int, ...]],
        metadata: Mapping[str, Any] | None = None,
    ) -> Region:
        """Make a region from sorted flat indices per tensor; tensors without indices select nothing.

        Raises:
            RegionError: indices are unsorted, doubled or outside the tensor.
        """
        masks = {}
        for name, shape in shapes.items():
            chosen = np.asarray(indices.get(name, ()), dtype=np.int64)
            if chosen.size and (chosen[0] < 0 or chosen[-1] >= math.prod(shape) or np.any(np.diff(chosen) <= 0)):
                raise RegionError(f"tensor '{name}': indices must be sorted, distinct and inside shape {list(shape)}")
            masks[name] = encode_indices(chosen, shape)
        return cls(shapes, masks.__getitem__, metadata)._counted()

    @classmethod
    def from_masks(cls, masks: Mapping[str, NDArray[np.bool_]], metadata: Mapping[str, Any] | None = None) -> Region:
        """Make a region from boolean arrays, one per tensor."""
        encoded = {name: encode_mask(np.asarray(mask, dtype=np.bool_)) for name, mask in masks.items()}
        return cls({name: mask.shape for name, mask in encoded.items()}, encoded.__getitem__, metadata)._counted()

    @classmethod
    def load(cls, path: str | Path) -> Region:
        """Open a region file, or a patch as the region of its entries; masks are decoded when asked for.

        Raises:
            RegionError: the file is missing, damaged or of another kind or version.
        """
        path = Path(os.path.expanduser(path))
        try:
            header = read_header(path)
            file = OpenFile(header)
        except CheckpointError as error:
            raise RegionError(str(error)) from None
        if header.metadata.get("format") not in (FORMAT, PATCH_FORMAT):
            raise RegionError(f"{path}: a safetensors file, but not a region (its metadata lack format={FORMAT})")
        if header.metadata.get("format_version") != FORMAT_VERSION:
            raise RegionError(
                f"{path}: region format version {header.metadata.get('format_version')!r}; this surgeon reads "
                f"{FORMAT_VERSION!r}: upgrade surgeon"
            )
        try:
            said = read_table(header)
            table = {name: described(header, name, said.get(name)) for name in mask_names(header)}
            provenance = as_object(parse_json(header.metadata.get("provenance", "{}").encode()), "its provenance")
        except NotPlain as error:
            raise RegionError(f"{path}: damaged region metadata: {error}; fetch the file again") from None

        def decode(name: str) -> Mask:
            shape, encoding, entries = table[name]
            mask = Mask(shape, encoding, file.tensor(header.tensors[name]), entries)
            check_encoding(path, name, mask)
            return mask

        return cls({name: shape for name, (shape, _, _) in table.items()}, decode, provenance)._counted()

    def save(self, path: str | Path) -> None:
        """Write the region file, one tensor at a time; it appears under its name only when complete."""
        table: dict[str, Any] = {}
        metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "polarity": "selected"}
        metadata["provenance"] = json.dumps(self.metadata, sort_keys=True, ensure_ascii=False)

        def encoded() -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
            for name in self.shapes:
                mask = self[name]
                table[name] = {"encoding": mask.encoding, "entries": mask.entries, "shape": list(mask.shape)}
                yield name, "U8", mask.data
            metadata["tensors"] = json.dumps(table, ensure_ascii=False)

        with replacing(Path(os.path.expanduser(path))) as staged:
            write_stream(staged, encoded(), metadata)

    def _counted(self) -> Region:
        self._is_counted = True
        return self

    def __repr__(self) -> str:
        """Say how much is selected; a region made by algebra is not computed for that."""
        whole = f"{self.numel:,} entries in {len(self)} tensors"
        if not self._is_counted:
            return f"Region(of {whole}; made when it is used)"
        return f"Region({self.entries:,} of {whole}, {100 * self.density():.3g} %)"

    def plot(self) -> Any:
        """Return the picture of the region through the model, which a notebook shows; None if it has no scan.

        Columns are residual-stream dimensions, rows are layers grouped by role (docs/seeing.md).
        """
        return view("region", self)

    def by_role(self) -> dict[str, tuple[int, int]]:
        """Return by role, such as `attn.q`, how many entries are selected, and of how many."""
        return dict(view("roles", self))

    def _repr_html_(self) -> str:
        """Show the region in a notebook: a line per tensor, the fullest first."""
        if not self._is_counted:
            return table(repr(self), [], [])
        masks = sorted(((name, self[name]) for name in self), key=lambda item: -item[1].entries)
        rows = [
            (name, str(list(mask.shape)), f"{mask.entries:,}", f"{100 * mask.entries / max(mask.numel, 1):.3g} %")
            for name, mask in masks[:_SHOWN]
        ]
        more = f"; the fullest {_SHOWN} tensors" if len(masks) > _SHOWN else ""
        return table(repr(self) + more, ["tensor", "shape", "entries", "share"], rows)

    def __getitem__(self, name: str) -> Mask:
        """Return the encoded mask of one tensor."""
        if name not in self.shapes:
            raise RegionError(f"the region has no tensor '{name}'")
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __eq__(self, other: object) -> bool:
        """Equal if both have the same tensors and select the same entries."""
        if not isinstance(other, Region):
            return NotImplemented
        return self.shapes == other.shapes and all(
            np.array_equal(self[name].indices(), other[name].indices()) for name in self
        )

    __hash__ = None  # type: ignore[assignment]

    def indices(self, name: str) -> Indices:
        """Return the sorted flat indices of the selected entries of one tensor, int64."""
        return self[name].indices()

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return one tensor's mask as booleans in its shape; `torch.from_numpy` turns it into a tensor."""
        return self[name].dense()

    def __and__(self, other: Region) -> Region:
        return self._combine(
            other, [n for n in self if n in other], lambda left, right: np.intersect1d(left, right, assume_unique=True)
        )

    def __or__(self, other: Region) -> Region:
        return self._combine(
            other, [*self, *(n for n in other if n not in self)], lambda left, right: united([left, right])
        )

    def __sub__(self, other: Region) -> Region:
        return self._combine(other, list(self), lambda left, right: np.setdiff1d(left, right, assume_unique=True))

    def __invert__(self) -> Region:
        return Region(self.shapes, lambda name: encode_mask(~self.mask(name)))

    def _combine(self, other: Region, names: Iterable[str], merge: Callable[[Indices, Indices], Indices]) -> Region:
        shapes = {name: self.shapes[name] if name in self else other.shapes[name] for name in names}
        for name, shape in shapes.items():
            if name in other and other.shapes[name] != shape:
                raise RegionError(
                    f"tensor '{name}' has shape {list(shape)} in one region and {list(other.shapes[name])} in the "
                    "other: the regions belong to different models"
                )
        nothing = np.empty(0, dtype=np.int64)

        def load(name: str) -> Mask:
            left = self.indices(name) if name in self else nothing
            right = other.indices(name) if name in other else nothing
            return encode_indices(merge(left, right), shapes[name])

        return Region(shapes, load)

    def only(self, names: Iterable[str]) -> Region:
        """Return the region in some of its tensors, with the same provenance."""
        return Region({name: self.shapes[name] for name in names}, self._load, self.metadata)

    @property
    def numel(self) -> int:
        """Entries of all tensors in scope, selected or not."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def entries(self) -> int:
        """Number of selected entries."""
        return sum(self[name].entries for name in self)

    def digest(self) -> str:
        """Return a SHA-256 of what is selected of which tensors; encodings of equal masks are equal."""
        sha256 = hashlib.sha256()
        for name in self:
            mask = self[name]
            sha256.update(json.dumps([name, list(mask.shape), mask.encoding]).encode())
            sha256.update(np.ascontiguousarray(mask.data).data)
        return sha256.hexdigest()

    def density(self) -> float:
        """Selected entries as a share of all entries in scope."""
        return self.entries / self.numel if self.numel else 0.0

    def hits(self, name: str) -> tuple[Indices, Indices]:
        """Return the selected entries per row and per column, int64, of a matrix (rows are its first axis).

        A vector counts as one column; tensors of more axes have their leading axes flattened into rows.

        Raises:
            RegionError: there are more rows or columns than any model has.
        """
        shape = self.shapes[name]
        columns = shape[-1] if len(shape) > 1 else 1
        rows = math.prod(shape) // columns if columns else 0
        if max(rows, columns) > _MOST_LINES:
            raise RegionError(f"tensor '{name}' of shape {list(shape)} has too many rows or columns to count")
        chosen = self.indices(name)
        by_row = np.bincount(chosen // columns, minlength=rows) if chosen.size else np.zeros(rows, np.int64)
        by_column = np.bincount(chosen % columns, minlength=columns) if chosen.size else np.zeros(columns, np.int64)
        return by_row, by_column

    def jaccard(self, other: Region) -> float:
        """Return |A & B| / |A | B| over all tensors of both; 1.0 for two empty regions."""
        shared = (self & other).entries
        union = self.entries + other.entries - shared
        return shared / union if union else 1.0


def is_region_file(path: str | Path) -> bool:
    """True if this is a readable safetensors file that says it is a region, or a patch."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        return False
    try:
        return read_header(path).metadata.get("format") in (FORMAT, PATCH_FORMAT)
    except CheckpointError:
        return False
