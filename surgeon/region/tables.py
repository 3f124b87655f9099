"""What the metadata of region and patch files say of their tensors, held against the header that they stand in."""

from __future__ import annotations

import math
from typing import Any

from surgeon.checkpoint.plain_json import NotPlain, as_object, as_shape, as_size, as_text, parse_json
from surgeon.checkpoint.storage import Header

PATCH_FORMAT = "surgeon-patch"  # a region that also carries values, see patch.py
VALUES = "values/"  # in a patch: before a tensor's name, the name of its values


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
