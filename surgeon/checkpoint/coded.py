"""Logical tensors: what a checkpoint's weights are, where a quantizer stored them as codes and scales.

The formats themselves are in `surgeon/formats/`, one file each; they are asked only where a tensor's dtype is one of
codes, so that plain checkpoints never load them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.plain_json import NotPlain, read_object
from surgeon.checkpoint.storage import NUMPY_DTYPES, TensorInfo, read_entries, read_pieces, read_span
from surgeon.kinds import kinds

if TYPE_CHECKING:
    from surgeon.formats.base import Codec

Indices = NDArray[np.int64]
# Packed codes; and eight-bit floats, which without scales are the values themselves, unless the config says otherwise.
_PACKED = {"U8", "I8", "U16", "I16", "I32", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2"}
_SETTINGS = "hf_quant_config.json"  # where ModelOpt says what config.json may not


class Stored(Protocol):
    """Reads stored tensors; both methods return arrays of their own memory, in the stored dtype."""

    def entries(self, info: TensorInfo, indices: Indices) -> NDArray[Any]:
        """Return entries by sorted flat indices, shape (n,)."""

    def span(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return the entries from flat index `start` to before `stop`."""


class StoredFiles:
    """Reads stored tensors from their files, nothing kept and nothing mapped."""

    def entries(self, info: TensorInfo, indices: Indices) -> NDArray[Any]:
        """Return entries by sorted flat indices, shape (n,)."""
        return read_entries(info, indices)

    def span(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return the entries from flat index `start` to before `stop`."""
        return read_span(info, start, stop)


@dataclass(frozen=True)
class Coded(TensorInfo):
    """A logical tensor that lies in stored ones; `offset` is -1, since its entries lie nowhere as they are.

    `nbytes` counts its entries in the logical dtype, `path` is the file of its codes. `parts` are the stored tensors by
    what they are to the codec, the codes first.
    """

    codec: Codec
    parts: Mapping[str, TensorInfo] = field(hash=False)

    @cached_property
    def codes(self) -> TensorInfo:
        """The stored tensor that holds the codes."""
        return next(iter(self.parts.values()))

    def array(self, read: Stored) -> NDArray[Any]:
        """Return the whole tensor in its shape and dtype, decoded a piece at a time, in memory of its own."""
        values = np.empty(self.numel, NUMPY_DTYPES[self.dtype])
        for start, piece in self.pieces(read):
            values[start : start + piece.size] = piece
        return values.reshape(self.shape)

    def pieces(self, read: Stored, step: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first flat index, entries), piece by piece: of `step` entries, or of what the codec likes best."""
        step = step or self.codec.piece(self)
        for start in range(0, self.numel, step):
            yield start, self.codec.decode(self, read, start, min(start + step, self.numel))


def parts_of(info: TensorInfo) -> tuple[TensorInfo, ...]:
    """Return the stored tensors that a logical one lies in, the codes first; a plain tensor is its own."""
    return tuple(info.parts.values()) if isinstance(info, Coded) else (info,)


def pieces_of(info: TensorInfo, step: int) -> Iterator[NDArray[Any]]:
    """Yield a tensor's entries in pieces of `step`, the last one shorter, in memory of their own."""
    if isinstance(info, Coded):
        yield from (piece for _, piece in info.pieces(StoredFiles(), step))
        return
    dtype = NUMPY_DTYPES[info.dtype]
    yield from (piece.view(dtype) for piece in read_pieces(info, step * dtype.itemsize))


def is_code(dtype: str) -> bool:
    """True for dtypes in which quantizers keep codes: lengths of such tensors are no widths of the model."""
    return dtype in _PACKED


def logical_tensors(
    config: Mapping[str, Any], folder: Path, stored: Mapping[str, TensorInfo]
) -> Mapping[str, TensorInfo]:
    """Return the logical tensors that lie in stored ones, each where its codes stand; plain ones are themselves.

    Raises:
        CheckpointError: tensors are of a known format and do not fit it, see `Codec.claim`.
    """
    if not any(is_code(info.dtype) for info in stored.values()):
        return stored
    left, settings = dict(stored), quantizer_settings(config, folder)
    if not settings:  # then transformers would take the codes for the values
        return stored
    made: dict[str, TensorInfo] = {}
    for format_ in kinds("surgeon.formats").values():
        for tensor in format_.claim(config, settings, left):
            made[tensor.codes.name] = tensor
            for part in tensor.parts.values():
                left.pop(part.name, None)
    if not made:
        return stored
    found = (made.get(name) or left.get(name) for name in stored)
    return {info.name: info for info in found if info is not None}


def quantizer_settings(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return what config.json, or ModelOpt's file beside it, says of a quantizer; `quant_method` names it."""
    inner = config.get("text_config") or {}
    for place in (config, inner):
        found: Any = place.get("quantization_config") or place.get("compression_config")
        if found:
            return found if isinstance(found, Mapping) else {"quant_method": str(found)}
    path = folder / _SETTINGS
    if not path.is_file():
        return {}
    try:
        said = read_object(path, unique=False)
    except (NotPlain, OSError):
        return {"quant_method": "modelopt"}
    producer, quantization = said.get("producer"), said.get("quantization")
    name = str(producer.get("name", "modelopt")) if isinstance(producer, Mapping) else "modelopt"
    return {**(quantization if isinstance(quantization, Mapping) else {}), "quant_method": name}
