"""What every format has: it claims stored tensors, decodes entries of the logical ones, and encodes new values.

A logical tensor is what the unquantized model has: its name, shape, dtype and flat indices. `Coded` says which codec
holds it and which stored tensors it is made of.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored
from surgeon.checkpoint.storage import DTYPE_BITS, TensorInfo
from surgeon.errors import CheckpointError

__all__ = [
    "Codec",
    "Coded",
    "Encoded",
    "Indices",
    "Rounding",
    "Stored",
    "StoredEdit",
    "coded",
    "logical_dtype",
    "require_scales",
]
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class StoredEdit:
    """Entries of one stored tensor that get new values; `indices` are sorted and flat, values in the stored dtype."""

    indices: Indices
    values: NDArray[Any]


@dataclass(frozen=True)
class Rounding:
    """What encoding cost beside the edit; add two to get both.

    `blocks` are those of which an entry was encoded anew; of them `rescaled` got another scale. `rounded` entries hold
    another value than was asked for, or, untouched, than they had; `largest` is the largest of these differences,
    `square` the sum of their squares, in float64.
    """

    blocks: int = 0
    rescaled: int = 0
    rounded: int = 0
    largest: float = 0.0
    square: float = 0.0

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(
            self.blocks + other.blocks, self.rescaled + other.rescaled, self.rounded + other.rounded,
            max(self.largest, other.largest), self.square + other.square,
        )  # fmt: skip

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


def coded(codec: Codec, name: str, dtype: str, shape: tuple[int, ...], parts: Mapping[str, TensorInfo]) -> Coded:
    """Return the logical tensor of some name, dtype and shape that lies in `parts`, the codes first."""
    nbytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    return Coded(name, dtype, shape, next(iter(parts.values())).path, -1, nbytes, codec, parts)


def logical_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype of the unquantized model by its config, as safetensors names it; BF16 where it says none."""
    inner = config.get("text_config") or {}
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(place.get(key), str) and place[key] in _DTYPES:
                return _DTYPES[place[key]]
    return "BF16"


def require_scales(tensor: Coded, info: TensorInfo, scales: NDArray[Any]) -> None:
    """Refuse scales, those of the stored tensor `info`, that are no finite positive numbers.

    Raises:
        CheckpointError: one is not.
    """
    values = scales.astype(np.float64)
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        raise CheckpointError(
            f"{info.path}: tensor '{info.name}' holds the scale {values[wrong][0]:g}, with which no weight of "
            f"'{tensor.name}' can be told; fetch the file again, or quantize the model again"
        )
