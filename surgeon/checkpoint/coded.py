"""Logical tensors, where a quantizer stored them as codes and scales, and what every codec of such a format can do.

A logical tensor is what the unquantized model has: its name, shape, dtype and flat indices. The formats themselves are
in `surgeon/formats/`, one file each; they are asked for those that they know only where a tensor's dtype is one of
codes, so that plain checkpoints never load them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.config import quantizer_settings
from surgeon.checkpoint.storage import NUMPY_DTYPES, TensorInfo, read_entries, read_pieces, read_span
from surgeon.errors import InputError
from surgeon.kinds import kinds

Indices = NDArray[np.int64]
Added = TypeVar("Added", bound="Totals")
# Packed codes; and eight-bit floats, which without scales are the values themselves, unless the config says otherwise.
_PACKED = {"U8", "I8", "U16", "I16", "I32", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2"}


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


@dataclass(frozen=True)
class StoredEdit:
    """Entries of one stored tensor that get new values; `indices` are sorted and flat, values in the stored dtype."""

    indices: Indices
    values: NDArray[Any]


class Totals:
    """Base of frozen dataclasses of totals: add two to get those over both; of `largest` the larger one is taken."""

    def __add__(self: Added, other: Added) -> Added:
        pairs = {name: (value, getattr(other, name)) for name, value in vars(self).items()}
        return type(self)(
            **{name: max(both) if name == "largest" else both[0] + both[1] for name, both in pairs.items()}
        )


@dataclass(frozen=True)
class Rounding(Totals):
    """What encoding cost beside the edit.

    `blocks` are those of which an entry was encoded anew; of them `rescaled` got another scale. `rounded` entries hold
    another value than was asked for, or, untouched, than they had; `largest` is the largest of these differences,
    `square` the sum of their squares, in float64.
    """

    blocks: int = 0
    rescaled: int = 0
    rounded: int = 0
    largest: float = 0.0
    square: float = 0.0

    @property
    def norm(self) -> float:
        """The L2 norm of the error that encoding added."""
        return math.sqrt(self.square)


@dataclass(frozen=True)
class Encoded:
    """What an edit of a logical tensor is in stored ones.

    `stored` are the edits by the names of stored tensors; those without any are left out. `indices` and `values` are
    all logical entries that may have changed, those asked for and the others of rescaled blocks, with what they decode
    to now, in the logical dtype.
    """

    stored: Mapping[str, StoredEdit]
    indices: Indices
    values: NDArray[Any]
    rounding: Rounding = field(default_factory=Rounding)


@dataclass(frozen=True)
class Codec(ABC):
    """Base of the formats: a frozen dataclass of what the config says of the format, one object for many tensors."""

    kind: ClassVar[str]  # its key among the formats, short, as `inspect` shows it
    zero_is_exact: ClassVar[bool] = True  # a code stands for zero, whatever the scale
    encodes: ClassVar[bool] = True  # False for formats that are only read
    code_bits: ClassVar[int] = 8  # of one code; 4 where two share a byte

    @classmethod
    @abstractmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Return the logical tensors that this format finds among stored ones, by headers alone; mostly none.

        `config` is config.json; `settings` are its `quantization_config`, or what a quantizer says elsewhere; where
        nothing does, no format is asked. Tensors that another format claimed are not there.

        Raises:
            CheckpointError: tensors are of this format and do not fit: scales are missing, of another shape or dtype,
                or the settings speak of another format.
        """

    @property
    @abstractmethod
    def words(self) -> str:
        """Say in some words how the weights are stored: `FP8 (E4M3), a scale per 128 x 128 block`."""

    def blocks(self, tensor: Coded) -> int:
        """Return how many blocks, each with a scale of its own, a tensor has; here the length of the part `scales`."""
        return tensor.parts["scales"].numel if "scales" in tensor.parts else 1

    @abstractmethod
    def piece(self, tensor: Coded) -> int:
        """Return how many entries to decode at a time: ranges that begin and end at multiples of it cost least."""

    @abstractmethod
    def decode(self, tensor: Coded, read: Stored, start: int, stop: int) -> NDArray[Any]:
        """Return the entries from flat index `start` to before `stop`, shape (stop - start,), in the logical dtype.

        Raises:
            CheckpointError: a scale is none (`require_scales`).
        """

    @abstractmethod
    def entries(self, tensor: Coded, read: Stored, indices: Indices) -> NDArray[Any]:
        """Return entries by sorted flat indices, shape (n,), in the logical dtype; errors as of `decode`."""

    @abstractmethod
    def encode(self, tensor: Coded, read: Stored, indices: Indices, values: NDArray[np.float64]) -> Encoded:
        """Make new values of some entries, by sorted flat indices, edits of stored tensors.

        An entry whose value is the one that it has (by bits, `-0.0` included) keeps its code. Blocks that no new value
        falls into keep every byte. Values are rounded once, from the float64 given.

        Raises:
            CheckpointError: a scale is none.
            InputError: a value is not finite and the format has no code for it, or no scale is large enough.
        """


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
    coded: dict[str, TensorInfo] = {}
    for codec in kinds("surgeon.formats").values():
        for tensor in codec.claim(config, settings, left):
            coded[tensor.codes.name] = tensor
            for part in tensor.parts.values():
                left.pop(part.name, None)
    if not coded:
        return stored
    infos = (coded.get(name) or left.get(name) for name in stored)
    return {info.name: info for info in infos if info is not None}


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


def rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round float64 to another dtype, once, to nearest and ties to even; what is too large becomes infinite.

    The narrow dtypes that numpy does not have itself are converted by way of float32. To round to nearest on that
    way too would round twice, so there the float32 is rounded to odd, after which the second rounding is right.

    Raises:
        InputError: the dtype is one of integers, and a value lies outside its range.
    """
    if np.issubdtype(dtype, np.integer):
        return _integers(np.rint(values), dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.itemsize >= 4 or dtype == np.float16:
            return values.astype(dtype)
        single = values.astype(np.float32)
        inexact = single.astype(np.float64) != values
        too_large = np.abs(single.astype(np.float64)) > np.abs(values)
        bits = single.view(np.uint32) - too_large.astype(np.uint32)
        result: NDArray[Any] = (bits | inexact).view(np.float32).astype(dtype)
        return result


def _integers(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max) + 1
    outside = ~((values >= low) & (values < high))
    if outside.any():
        raise InputError(f"{values[outside][0]:g} lies outside of the range of {dtype.name}; use smaller values")
    return values.astype(dtype)
