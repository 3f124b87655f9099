"""The sparse patch: what changed between two checkpoints, entries and values, to be done again on the first.

A patch is a region file that also carries values: each tensor's mask under its own name, and beside it the new
values of those entries, bit for bit, in the tensor's own dtype. So it serves as a region (`file:`) and as the
donor of `restore`. It names the SHA-256 of every tensor it was made for, and is refused on any other. The format
is described in docs/patch-format.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.plain_json import NotPlain, as_text, as_texts, parse_json
from surgeon.checkpoint.storage import Header, OpenFile, TensorInfo, read_header, write_stream
from surgeon.errors import CheckpointError, RegionError
from surgeon.inside import replacing
from surgeon.region.mask import PATCH_FORMAT, VALUES, Indices, encode_packed, mask_names, read_table
from surgeon.region.region import FORMAT_VERSION, Region

Piece = tuple[NDArray[Any], NDArray[Any]]  # the same entries before and after, one-dimensional, of one dtype


@dataclass(frozen=True)
class PatchedTensor:
    """What a patch says of one tensor; `base_sha256` hashes all of its bytes before the change."""

    dtype: str
    shape: tuple[int, ...]
    entries: int
    base_sha256: str


@dataclass(frozen=True)
class Patch:
    """A patch file; values are read when they are asked for.

    `left_out` names tensors that differ in a way that a patch cannot carry, and how: missing, extra, reshaped ...
    """

    path: Path
    region: Region
    tensors: Mapping[str, PatchedTensor]
    left_out: Mapping[str, str]
    _header: Header = field(repr=False, compare=False)
    _file: OpenFile = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Open a patch file.

        Raises:
            RegionError: the file is missing, damaged or of another kind or version.
        """
        path = Path(path)
        region = Region.load(path)
        try:
            header = read_header(path)
            file = OpenFile(header)
        except CheckpointError as error:
            raise RegionError(str(error)) from None
        if header.metadata.get("format") != PATCH_FORMAT:
            raise RegionError(f"{path}: a region without values; a patch is written by `surgeon diff --save-patch`")
        try:
            table = read_table(header)
            tensors = {}
            for name in mask_names(header):
                entry, values = table[name], header.tensors.get(VALUES + name)  # an object, since the region has it
                if values is None or values.shape != (entry["entries"],):
                    raise NotPlain(f"tensor '{name}' has not one value for each of its {entry['entries']} entries")
                base = as_text(entry.get("base_sha256"), f"the hash of tensor '{name}'")
                tensors[name] = PatchedTensor(values.dtype, region.shapes[name], entry["entries"], base)
            left_out = as_texts(parse_json(header.metadata.get("left_out", "{}").encode()), "what it left out")
        except NotPlain as error:
            raise RegionError(f"{path}: damaged patch: {error}; fetch the file again") from None
        return cls(path, region, tensors, left_out, header, file)

    @property
    def pinned(self) -> str:
        """The name under which it is found again."""
        return str(self.path)

    def values(self, name: str) -> NDArray[Any]:
        """Return the new values of one tensor's entries in ascending flat index, shape (entries,), read-only."""
        return self._file.tensor(self._header.tensors[VALUES + name])

    def at(self, name: str, indices: Indices) -> NDArray[Any]:
        """Return the new values of some of the patch's entries.

        Raises:
            RegionError: the patch does not carry one of them.
        """
        carried = self.region.indices(name)
        positions = np.searchsorted(carried, indices)
        inside = positions < carried.size
        if not (inside.all() and np.array_equal(carried[positions], indices)):
            raise RegionError(
                f"{self.path}: carries {carried.size} entries of tensor '{name}', and not all that are asked of it; "
                "use the patch itself as the region"
            )
        return self.values(name)[positions]


def is_patch_file(path: str | Path) -> bool:
    """True if this is a readable safetensors file that says it is a patch."""
    path = Path(os.path.expanduser(path))
    try:
        return path.is_file() and read_header(path).metadata.get("format") == PATCH_FORMAT
    except CheckpointError:
        return False


def write_patch(
    path: Path,
    tensors: Iterable[tuple[TensorInfo, Iterable[Piece]]],
    provenance: Mapping[str, Any],
    left_out: Mapping[str, str] | None = None,
) -> Patch:
    """Write what differs, by bits, between the pieces before and after; it appears only when complete.

    Each tensor comes as its header entry and its pieces, first to last, each but the last of a multiple of eight
    entries. Memory: one piece, and one bit per entry of one tensor.

    Raises:
        RegionError: nothing differs.
    """
    table: dict[str, Any] = {}
    metadata = {"format": PATCH_FORMAT, "format_version": FORMAT_VERSION, "polarity": "selected"}
    metadata["provenance"] = json.dumps(dict(provenance), sort_keys=True, ensure_ascii=False)
    if left_out:
        metadata["left_out"] = json.dumps(dict(left_out), sort_keys=True, ensure_ascii=False)

    def encoded() -> Iterator[tuple[str, str, NDArray[Any]]]:
        for info, pieces in tensors:
            digest, packed, entries = hashlib.sha256(), [np.empty(0, np.uint8)], 0
            for before, after in pieces:
                digest.update(before.view(np.uint8).data)
                bits = f"u{before.itemsize}"
                differ = before.view(bits) != after.view(bits)
                packed.append(np.packbits(differ))
                count = int(np.count_nonzero(differ))
                entries += count
                if count:
                    yield VALUES + info.name, info.dtype, after[differ]
            if entries:
                mask = encode_packed(np.concatenate(packed), entries, info.shape)
                table[info.name] = {
                    "encoding": mask.encoding, "entries": entries, "shape": list(info.shape),
                    "base_sha256": digest.hexdigest(),
                }  # fmt: skip
                yield info.name, "U8", mask.data
        if not table:
            raise RegionError(f"{path}: not written, since no entry differs")
        metadata["tensors"] = json.dumps(table, ensure_ascii=False)

    with replacing(path) as staged:
        write_stream(staged, encoded(), metadata)
    return Patch.load(path)
