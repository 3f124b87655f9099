"""bitsandbytes: 4 bits, a table of sixteen numbers and the largest magnitude of each block; 8 bits, a scale per row.

4 bits: `weight` in U8, two codes a byte, the first in the high half; `weight.quant_map` the table, NF4 or FP4;
`weight.absmax` the scales, or with double quantization codes of them (`nested_quant_map`, `nested_absmax`, an offset).
Shape, block size and dtype are JSON in the bytes of `weight.quant_state.bitsandbytes__nf4`, a tensor of some hundred
bytes that is read with the headers. 8 bits: `weight` in I8, `SCB` the largest magnitude of each row, of 127 steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored, StoredEdit, StoredFiles
from surgeon.checkpoint.plain_json import NotPlain, as_object, as_shape, parse_json
from surgeon.checkpoint.storage import NUMPY_DTYPES, TensorInfo
from surgeon.errors import CheckpointError, InputError
from surgeon.formats.base import DTYPES, coded, logical_dtype, misfit, require_method, required, whole
from surgeon.formats.blocks import AT_ONCE, Extremes, ScaledBlocks
from surgeon.formats.packing import distinct, gathered, halves, pairs, with_halves

_METHODS = ("bitsandbytes",)
_STATE = ".quant_state.bitsandbytes__"
_TABLES = ("nf4", "fp4")
_STATE_BYTES = 1 << 12  # a state has some hundred
_READERS = 8  # states that are read side by side, since each is a short wait for the disk
_STEP = np.float32(7.874015718698502e-3)  # 1 / 127, as bitsandbytes has it


class _LargestMagnitudes(ScaledBlocks):
    """Scales that are the largest magnitude of a block."""

    def enlarged(self, tensor: Coded, read: Stored, asked: Extremes) -> NDArray[np.float64]:
        """Return the largest magnitudes, as bitsandbytes does."""
        return np.maximum(asked.scales, asked.largest).astype(np.float32).astype(np.float64)

    def fits(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[np.bool_]:
        """A number fits up to the limit; in a block whose scale is zero only zero does."""
        return np.isnan(numbers) | (np.abs(numbers) <= self.limit)

    def scales(self, tensor: Coded, read: Stored, blocks: Indices) -> NDArray[np.float32]:
        """Return the largest magnitudes; one may be zero, where all of a block is."""
        info = tensor.parts["scales"]
        return _finite(tensor, info, read.entries(info, blocks))


@dataclass(frozen=True)
class BitsAndBytes4(_LargestMagnitudes):
    """Codes of four bits in blocks of `size`; scales are codes themselves in blocks of `nested`, plus `offset`."""

    kind: ClassVar[str] = "bitsandbytes"
    code_bits: ClassVar[int] = 4
    limit: ClassVar[float] = 1 + 2**-8  # the largest number is 1; rounding to bfloat16 may have put a value beyond it

    table: str = "nf4"
    size: int = 64
    nested: int = 0
    offset: float = field(default=0.0, compare=False)  # of each tensor

    @classmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Claim every tensor that has a state of bitsandbytes beside it."""
        states = [info for name, info in stored.items() if _STATE in name]
        if not states:
            return []

        def read(info: TensorInfo) -> bytes:
            return StoredFiles().span(info, 0, min(info.numel, _STATE_BYTES)).tobytes() if info.dtype == "U8" else b""

        with ThreadPoolExecutor(_READERS) as pool:
            texts = list(pool.map(read, states))
        return [cls._claimed(info, text, settings, stored) for info, text in zip(states, texts, strict=True)]

    @classmethod
    def _claimed(
        cls, info: TensorInfo, text: bytes, settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> Coded:
        name, _, table = info.name.partition(_STATE)
        if name not in stored:
            raise CheckpointError(f"{info.path}: '{info.name}' is the state of '{name}', which is not there")
        require_method(settings, _METHODS, stored[name], "bitsandbytes' 4 bits")
        state, shape, dtype = _read_state(info, text)
        names = {"codes": name, "scales": f"{name}.absmax", "table": f"{name}.quant_map"}
        nested = state.get("nested_blocksize", 0)
        if nested:
            names |= {"nested_scales": f"{name}.nested_absmax", "nested_table": f"{name}.nested_quant_map"}
        above, _, last = name.rpartition(".")
        parts = required(
            stored, above, {role: last + of.removeprefix(name) for role, of in names.items()}, "bitsandbytes"
        )
        parts["state"] = info
        numel = math.prod(shape)
        blocks = math.ceil(numel / state["blocksize"])
        if not (
            numel
            and parts["codes"].nbytes == math.ceil(numel / 2)
            and parts["codes"].dtype in ("U8", "BF16", "F16", "F32")
            and parts["table"].shape == (16,)
            and parts["table"].dtype == "F32"
            and parts["scales"].numel == blocks
            and parts["scales"].dtype == ("U8" if nested else "F32")
            and (not nested or parts["nested_scales"].numel == math.ceil(blocks / nested))
            and (not nested or parts["nested_table"].shape == (256,))
            and (not nested or parts["nested_scales"].dtype == parts["nested_table"].dtype == "F32")
        ):
            raise misfit(parts, "bitsandbytes' 4 bits")
        codec = cls(table, state["blocksize"], nested, float(state.get("nested_offset", 0.0)))
        return coded(codec, name, dtype, shape, parts)

    @property
    def words(self) -> str:
        """Name the table, and what has a scale."""
        scales = ", quantized too" if self.nested else ""
        return f"bitsandbytes {self.table.upper()}, a scale per {self.size} entries{scales}"

    def piece(self, tensor: Coded) -> int:
        """Return whole blocks, about a million entries."""
        return self.size * max(1, AT_ONCE // self.size)

    def run(self, tensor: Coded) -> int:
        """Return the size of a block; the last one may be cut off."""
        return self.size

    def decode(self, tensor: Coded, read: Stored, start: int, stop: int) -> NDArray[Any]:
        """Decode whole blocks, and return the part of them that is asked for."""
        first, last = start // self.size, -(-stop // self.size)
        low, high = first * self.size, min(last * self.size, tensor.numel)
        info = _as_bytes(tensor.codes)
        data = read.span(info, low // 2, -(-high // 2))
        codes = pairs(data)[:, ::-1].reshape(-1)[: high - low]
        scales = np.repeat(self.scales(tensor, read, np.arange(first, last)), self.size)[: high - low]
        return self._values(tensor, self._table(tensor, read)[codes], scales)[start - low : stop - low]

    def codes(self, tensor: Coded, read: Stored, at: Indices) -> NDArray[np.float32]:
        """Return what the codes stand for, since the table is stored."""
        held = halves(read, _as_bytes(tensor.codes), at, high_first=True)
        numbers: NDArray[np.float32] = self._table(tensor, read)[held]
        return numbers

    def with_codes(self, tensor: Coded, read: Stored, at: Indices, codes: NDArray[Any]) -> dict[str, StoredEdit]:
        """Put the codes of numbers of the table into their halves of bytes; the other half stays.

        An entry whose number is the one that it has keeps its code: FP4 has two codes for zero.
        """
        table, info = self._table(tensor, read), _as_bytes(tensor.codes)
        held = halves(read, info, at, high_first=True)
        order = np.lexsort((np.signbit(table), table))  # of two zeros the positive one first
        nearest = order[np.searchsorted(table[order], codes)].astype(np.uint8)
        same = (table[held] == codes) & (np.signbit(table[held]) == np.signbit(codes))
        edit = with_halves(read, info, at, np.where(same, held, nearest), high_first=True)
        return {tensor.codes.name: _stored_bytes(tensor.codes, read, edit)}

    def numbers(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the numbers, which are there already."""
        return codes

    def nearest(
        self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices
    ) -> NDArray[np.float32]:
        """Return the nearest numbers of the table."""
        table = np.unique(self._table(tensor, read)) + np.float32(0)  # no negative zero
        halfway = (table[1:].astype(np.float64) + table[:-1]) / 2
        return table[np.searchsorted(halfway, numbers)]

    def _table(self, tensor: Coded, read: Stored) -> NDArray[np.float32]:
        return _finite(tensor, tensor.parts["table"], read.span(tensor.parts["table"], 0, 16))

    def scales(self, tensor: Coded, read: Stored, blocks: Indices) -> NDArray[np.float32]:
        """Return the scales, which may be codes themselves."""
        if not self.nested:
            return super().scales(tensor, read, blocks)
        info, outer = tensor.parts["scales"], tensor.parts["nested_scales"]
        table = read.span(tensor.parts["nested_table"], 0, 256)
        scales = table[read.entries(info, blocks)] * gathered(read, outer, blocks // self.nested)
        return _finite(tensor, info, scales + np.float32(self.offset))

    def enlarged(self, tensor: Coded, read: Stored, asked: Extremes) -> NDArray[np.float64]:
        """Return the largest magnitudes.

        Raises:
            InputError: the scales are codes themselves, so that another one would not be what it has to be.
        """
        if self.nested:
            raise InputError(
                f"new values of tensor '{tensor.name}' do not fit the scales of their blocks, which are quantized too "
                "and cannot be set; use smaller values, or `write: {dtype: bfloat16}`"
            )
        return super().enlarged(tensor, read, asked)


@dataclass(frozen=True)
class BitsAndBytes8(_LargestMagnitudes):
    """Codes of a byte, -127 to 127, and the largest magnitude of each row."""

    kind: ClassVar[str] = "bitsandbytes-8"
    limit: ClassVar[float] = 127.5 / 127  # half a step beyond the largest

    @classmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Claim every matrix that has `SCB` beside it."""
        modules = [name.removesuffix(".SCB") for name in stored if name.endswith(".SCB")]
        if settings.get("load_in_8bit") is True:
            codes = [name for name, info in stored.items() if info.dtype == "I8" and name.endswith(".weight")]
            modules += [
                name.removesuffix(".weight") for name in codes if name.removesuffix("weight") + "SCB" not in stored
            ]
        tensors, dtype = [], logical_dtype(config)
        for module in modules:
            if f"{module}.weight" not in stored:
                raise CheckpointError(f"{stored[f'{module}.SCB'].path}: '{module}.SCB' are scales of no tensor")
            require_method(settings, _METHODS, stored[f"{module}.weight"], "bitsandbytes' 8 bits")
            parts = required(stored, module, {"codes": "weight", "scales": "SCB"}, "bitsandbytes' 8 bits")
            if f"{module}.weight_format" in stored:
                parts["format"] = stored[f"{module}.weight_format"]
            shape, scales = parts["codes"].shape, parts["scales"]
            if len(shape) != 2 or parts["codes"].dtype != "I8" or (scales.dtype, scales.shape) != ("F32", shape[:1]):
                raise misfit(parts, "bitsandbytes' 8 bits")
            tensors.append(coded(cls(), f"{module}.weight", dtype, shape, parts))
        return tensors

    @property
    def words(self) -> str:
        """Name the format."""
        return "bitsandbytes INT8, a scale per row"

    def decode(self, tensor: Coded, read: Stored, start: int, stop: int) -> NDArray[Any]:
        """Decode a range with the scales of its rows."""
        scales = self._scales(tensor, read, np.arange(start, stop) // tensor.shape[1])
        return self._values(tensor, read.span(tensor.codes, start, stop), scales)

    def _values(self, tensor: Coded, codes: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[Any]:
        """Multiply in the order of bitsandbytes."""
        return (codes.astype(np.float32) * scales * _STEP).astype(NUMPY_DTYPES[tensor.dtype])

    def codes(self, tensor: Coded, read: Stored, at: Indices) -> NDArray[np.int8]:
        """Return the codes; rows in format 0 only, which is the one that is saved.

        Raises:
            CheckpointError: rows are in another order.
        """
        info = tensor.parts.get("format")
        if info is not None and int(read.span(info, 0, 1)[0]):
            raise CheckpointError(f"{info.path}: '{info.name}' says that the codes of '{tensor.name}' are not in rows")
        return read.entries(tensor.codes, at)

    def numbers(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return parts of the largest magnitude."""
        return codes.astype(np.float32) * _STEP

    def nearest(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[np.int8]:
        """Round to steps of 127."""
        return np.clip(np.rint(np.nan_to_num(numbers) * 127), -127, 127).astype(np.int8)


def _read_state(info: TensorInfo, text: bytes) -> tuple[Mapping[str, Any], tuple[int, ...], str]:
    """Return the state, the shape and the dtype that it gives.

    Raises:
        CheckpointError: it is none.
    """
    dtype = None
    try:
        state = as_object(parse_json(text), "the state")
        shape, dtype = as_shape(state.get("shape")), DTYPES.get(str(state.get("dtype")))
        sizes = [state.get("blocksize"), state.get("nested_blocksize", 1)]
        sane = all(whole(size, 1, 1 << 20) for size in sizes) and info.name.endswith(_TABLES)
        sane = sane and sizes[0] % 2 == 0 and np.isfinite(float(state.get("nested_offset", 0.0)))
    except (NotPlain, TypeError, ValueError):
        sane = False
    if not sane or dtype is None:
        raise CheckpointError(
            f"{info.path}: '{info.name}' is not a bitsandbytes state with a shape, a dtype and a block size; fetch the "
            "file again"
        )
    return state, shape, dtype


def _finite(tensor: Coded, info: TensorInfo, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Refuse what is not finite, and scales below zero.

    Raises:
        CheckpointError: a value is such.
    """
    wrong = ~np.isfinite(values) | ((values < 0) & (info is not tensor.parts.get("table")))
    if wrong.any():
        raise CheckpointError(
            f"{info.path}: '{info.name}' holds {values[wrong][0]:g}, with which no weight of '{tensor.name}' can be "
            "told; fetch the file again, or quantize the model again"
        )
    return values


def _as_bytes(info: TensorInfo) -> TensorInfo:
    return replace(info, dtype="U8", shape=(info.nbytes,))


def _stored_bytes(info: TensorInfo, read: Stored, edit: StoredEdit) -> StoredEdit:
    """Return the edit of bytes as one in the stored dtype, which is wider where `bnb_4bit_quant_storage` says so."""
    if info.dtype == "U8":
        return edit
    dtype = NUMPY_DTYPES[info.dtype]
    words, which = distinct(edit.indices // dtype.itemsize)
    held = read.entries(info, words).copy().view(np.uint8).reshape(-1, dtype.itemsize)
    held[which, edit.indices % dtype.itemsize] = edit.values
    return StoredEdit(words, held.reshape(-1).view(dtype))
