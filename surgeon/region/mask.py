"""The selected entries of one tensor, encoded; and what the metadata of region and patch files say of their masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.plain_json import NotPlain, as_object, as_shape, as_size, as_text, parse_json
from surgeon.checkpoint.storage import Header
from surgeon.errors import RegionError

PATCH_FORMAT = "surgeon-patch"  # a region that also carries values, see patch.py
VALUES = "values/"  # in a patch: before a tensor's name, the name of its values
Indices = NDArray[np.int64]
_PIECE = 1 << 20  # jumps that are decoded at a time
_SKIP = 255  # in `gaps`: advance by 255, no entry here


@dataclass(frozen=True, repr=False)
class Mask:
    """The selected entries of one tensor, encoded as `gaps` or `bits` (see `encode_indices`)."""

    shape: tuple[int, ...]
    encoding: str
    data: NDArray[np.uint8]
    entries: int

    @property
    def numel(self) -> int:
        """Number of entries of the tensor, selected or not."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        share = 100 * self.entries / max(self.numel, 1)
        return f"Mask({self.entries:,} of {self.numel:,} entries, {share:.3g} %, shape {list(self.shape)})"

    def indices(self) -> Indices:
        """Return the sorted flat indices of the selected entries, int64."""
        if self.encoding == "gaps":
            reached, chosen = np.int64(0), [np.empty(0, dtype=np.int64)]
            for start in range(0, self.data.size, _PIECE):  # a file of jumps alone is long, and says little
                piece = self.data[start : start + _PIECE]
                positions = np.cumsum(piece, dtype=np.int64) + reached
                reached = positions[-1]
                chosen.append(positions[piece != _SKIP])
            return np.concatenate(chosen)
        return np.flatnonzero(self.flat())

    def flat(self) -> NDArray[np.bool_]:
        """Return the mask as booleans, shape (numel,)."""
        if self.encoding == "bits":
            return np.unpackbits(self.data, count=self.numel).view(np.bool_)
        mask = np.zeros(self.numel, dtype=np.bool_)
        mask[self.indices()] = True
        return mask

    def dense(self) -> NDArray[np.bool_]:
        """Return the mask as booleans in the tensor's shape."""
        return self.flat().reshape(self.shape)


def encode_indices(indices: Indices, shape: tuple[int, ...]) -> Mask:
    """Encode sorted, distinct flat indices as the smaller of the two encodings (`gaps` on a tie).

    `gaps`: differences between successive indices (the first one counted from 0), one byte each; 255 means
    "255 further, no entry". `bits`: one bit per entry in the order of `numpy.packbits`.
    """
    numel = math.prod(shape)
    steps = np.diff(indices, prepend=np.int64(0))
    skips = steps // _SKIP
    gap_bytes = indices.size + int(skips.sum())
    if gap_bytes <= (numel + 7) // 8:
        gaps = np.full(gap_bytes, _SKIP, dtype=np.uint8)
        gaps[np.cumsum(skips + 1) - 1] = steps % _SKIP
        return Mask(shape, "gaps", gaps, indices.size)
    flat = np.zeros(numel, dtype=np.bool_)
    flat[indices] = True
    return Mask(shape, "bits", np.packbits(flat), indices.size)


def encode_packed(bits: NDArray[np.uint8], entries: int, shape: tuple[int, ...]) -> Mask:
    """Encode a mask given as packed bits; a dense one never becomes a list of indices."""
    mask = Mask(shape, "bits", bits, entries)
    # Each index takes at least a byte as a gap, so that above one in eight bits are the smaller encoding.
    return mask if entries > bits.size else encode_indices(mask.indices(), shape)


def encode_mask(mask: NDArray[np.bool_]) -> Mask:
    """Encode a boolean array of the tensor's shape."""
    return encode_indices(np.flatnonzero(mask), mask.shape)


def united(parts: Sequence[Indices]) -> Indices:
    """Return the sorted distinct indices of all parts, each of which is sorted.

    NumPy's own `unique` and `union1d` hash, which takes twenty times as long as to sort.
    """
    parts = [part for i, part in enumerate(parts) if not any(part is other for other in parts[:i])]
    if len(parts) == 1:
        return parts[0]
    merged = np.sort(np.concatenate([*parts, np.empty(0, np.int64)]), kind="stable")  # which merges runs
    return merged[np.diff(merged, prepend=-1) > 0]


def hits_of(places: Indices) -> NDArray[np.int64]:
    """Count how often each place occurs that occurs at all, in no promised order of places."""
    if places.size and int(places.max()) > 4 * places.size + (1 << 20):  # too wide a span to count over
        return np.unique(places, return_counts=True)[1]
    counts = np.bincount(places)
    return counts[counts > 0]


def check_encoding(path: Path, name: str, mask: Mask) -> None:
    """Make sure that a mask is what was written.

    Raises:
        RegionError: it is not, or its encoding is unknown.
    """
    if mask.encoding == "gaps":
        count = int(np.count_nonzero(mask.data != _SKIP))
        in_range = not mask.data.size or int(mask.data.sum(dtype=np.int64)) < mask.numel
        # A step of nothing is the first entry, or follows a jump; anywhere else it names an entry twice.
        in_range &= not np.any((mask.data[1:] == 0) & (mask.data[:-1] != _SKIP))
    elif mask.encoding == "bits":
        in_range = mask.data.size == (mask.numel + 7) // 8
        count = int(np.unpackbits(mask.data, count=mask.numel).sum(dtype=np.int64)) if in_range else -1
    else:
        raise RegionError(f"{path}: tensor '{name}' has the unknown encoding {mask.encoding!r}; upgrade surgeon")
    if not in_range or count != mask.entries:
        raise RegionError(f"{path}: the mask of tensor '{name}' is damaged")


def mask_names(header: Header) -> list[str]:
    """Return the tensors of a region or patch file that are masks; their names are those of the model's tensors."""
    patch = header.metadata.get("format") == PATCH_FORMAT
    return [name for name in header.tensors if not (patch and name.startswith(VALUES))]


def read_table(header: Header) -> dict[str, Any]:
    """Return what the metadata of a region or patch file say of its tensors, by name.

    Raises:
        NotPlain: nothing, or no JSON object.
    """
    return as_object(parse_json(as_text(header.metadata.get("tensors"), "its table of tensors").encode()), "its table")


def described(header: Header, name: str, said: Any) -> tuple[tuple[int, ...], str, int]:
    """Return shape, encoding and number of entries of a mask, as far as they can be told from the header.

    Raises:
        NotPlain: they are not what they must be, or do not fit the bytes that are there.
    """
    what, stored = f"the entry of tensor '{name}'", header.tensors[name]
    entry = as_object(said, what)
    shape = as_shape(entry.get("shape"), f"{what}: the shape")
    encoding, entries = as_text(entry.get("encoding"), f"{what}: the encoding"), as_size(entry.get("entries"), what)
    if stored.dtype != "U8" or len(stored.shape) != 1:
        raise NotPlain(f"the mask of tensor '{name}' is {stored.dtype} of {len(stored.shape)} axes, not bytes in a row")
    if encoding == "bits" and stored.nbytes != (math.prod(shape) + 7) // 8:
        raise NotPlain(f"the mask of tensor '{name}' has {stored.nbytes} bytes, which do not fit {list(shape)}")
    if entries > math.prod(shape) or (encoding == "gaps" and entries > stored.nbytes):
        raise NotPlain(f"{what}: more entries than the mask can hold")
    return shape, encoding, entries
