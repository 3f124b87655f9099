"""GGUF, llama.cpp's files, by their heads alone: which tensors there are, how quantized, and whether zero is a code.

The format (docs/gguf.md of ggml): the magic bytes, a version, counts, metadata as typed keys and values, then name,
dimensions, type and offset of every tensor; all little-endian. Such files are not cut: see docs/formats.md.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST = 1 << 20  # tensors, keys; and bytes of a text
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class Quantization:
    """A type of ggml: entries and bytes of a block; `zero` says if each block has a code for zero, else why not."""

    name: str
    entries: int
    size: int
    zero: str


_PLAIN, _YES = "plain values", "yes"
_MINIMUM = "no: a minimum is added to the codes of each block"
_LEVELS = "no: none of its levels is zero"
QUANTIZATIONS: Mapping[int, Quantization] = {
    number: Quantization(name, entries, size, zero)
    for number, name, entries, size, zero in (
        (0, "F32", 1, 4, _PLAIN), (1, "F16", 1, 2, _PLAIN), (30, "BF16", 1, 2, _PLAIN), (28, "F64", 1, 8, _PLAIN),
        (24, "I8", 1, 1, _PLAIN), (25, "I16", 1, 2, _PLAIN), (26, "I32", 1, 4, _PLAIN), (27, "I64", 1, 8, _PLAIN),
        (2, "Q4_0", 32, 18, _YES), (3, "Q4_1", 32, 20, _MINIMUM), (6, "Q5_0", 32, 22, _YES),
        (7, "Q5_1", 32, 24, _MINIMUM), (8, "Q8_0", 32, 34, _YES), (10, "Q2_K", 256, 84, _MINIMUM),
        (11, "Q3_K", 256, 110, _YES), (12, "Q4_K", 256, 144, _MINIMUM), (13, "Q5_K", 256, 176, _MINIMUM),
        (14, "Q6_K", 256, 210, _YES), (16, "IQ2_XXS", 256, 66, _LEVELS), (17, "IQ2_XS", 256, 74, _LEVELS),
        (18, "IQ3_XXS", 256, 98, _LEVELS), (19, "IQ1_S", 256, 50, _LEVELS), (20, "IQ4_NL", 32, 18, _LEVELS),
        (21, "IQ3_S", 256, 110, _LEVELS), (22, "IQ2_S", 256, 82, _LEVELS), (23, "IQ4_XS", 256, 136, _LEVELS),
        (29, "IQ1_M", 256, 56, _LEVELS), (34, "TQ1_0", 256, 54, _YES), (35, "TQ2_0", 256, 66, _YES),
        (39, "MXFP4", 32, 17, _YES),
    )
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """A tensor by its name in llama.cpp; `shape` is in the order of transformers, rows first."""

    name: str
    shape: tuple[int, ...]
    quantization: Quantization

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self.numel // self.quantization.entries * self.quantization.size


@dataclass(frozen=True)
class Gguf:
    """What the head of a file says; of lists in the metadata only the length is kept."""

    size: int
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


def read_gguf(path: Path) -> Gguf:
    """Read the head of a file.

    Raises:
        CheckpointError: the file is missing, cut off, of another version, or its tensors do not fit into it.
    """
    try:
        with path.open("rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{path}: no GGUF file, or a damaged one ({error}); fetch the file again") from None


def _read(file: BufferedReader, size: int) -> Gguf:
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensors, keys = _numbers(file, "IQQ")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}; surgeon reads {' and '.join(map(str, _VERSIONS))}")
    if max(tensors, keys) > _MOST:
        raise ValueError(f"{max(tensors, keys):,} tensors or keys")
    metadata = {}
    for _ in range(keys):
        key = _text(file)
        metadata[key] = _value(file, int(_numbers(file, "I")[0]), size)
    described, end = [], 0
    for _ in range(tensors):
        tensor, offset = _tensor(file)
        described.append(tensor)
        end = max(end, offset + tensor.nbytes)
    if file.tell() + end > size:
        raise ValueError(f"cut off: {size:,} bytes, of which its tensors need {file.tell() + end:,}")
    return Gguf(size, metadata, tuple(described))


def _tensor(file: BufferedReader) -> tuple[GgufTensor, int]:
    name = _text(file)
    (axes,) = _numbers(file, "I")
    if not 0 < axes <= 4:
        raise ValueError(f"tensor '{name}' of {axes} axes")
    shape = tuple(reversed(_numbers(file, f"{axes}Q")))
    kind, offset = _numbers(file, "IQ")
    quantization = QUANTIZATIONS.get(kind)
    if quantization is None:
        raise ValueError(f"tensor '{name}' has type {kind} of ggml, which surgeon does not know")
    if shape[-1] % quantization.entries:
        raise ValueError(f"tensor '{name}' of shape {list(shape)} is not made of blocks of {quantization.entries}")
    return GgufTensor(name, shape, quantization), offset


def _numbers(file: BufferedReader, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file: BufferedReader) -> str:
    (length,) = _numbers(file, "Q")
    if length > _MOST:
        raise ValueError(f"a text of {length:,} bytes")
    data = file.read(length)
    if len(data) < length:
        raise ValueError("cut off inside a text")
    return data.decode()


def _value(file: BufferedReader, kind: int, size: int) -> Any:
    """Read a value; a list is passed over, and its length returned."""
    if kind == _TEXT:
        return _text(file)
    if kind != _LIST:
        if kind not in _FORMATS:
            raise ValueError(f"a value of type {kind}")
        return _numbers(file, _FORMATS[kind])[0]
    inner, length = _numbers(file, "IQ")
    if length > size:
        raise ValueError(f"a list of {length:,} values")
    if inner == _TEXT:
        for _ in range(length):
            file.seek(_numbers(file, "Q")[0], os.SEEK_CUR)
    elif inner in _FORMATS:
        file.seek(length * struct.calcsize(f"<{_FORMATS[inner]}"), os.SEEK_CUR)
    else:
        raise ValueError(f"a list of type {inner}")
    return length
