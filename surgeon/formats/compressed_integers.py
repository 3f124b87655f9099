"""Whole numbers as compressed-tensors stores them: packed into words of 32 bits, or a byte each.

Packed (`pack-quantized`): `weight_packed` in I32, every row a bit stream of codes of 1 to 8 bits, each a signed number
plus half the range; `weight_shape` holds the shape; `weight_zero_point` is packed likewise, down its columns. A byte
each (`int-quantized`): `weight` in I8, zero points too. `weight_scale` has one entry, one a row, or one per group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored, StoredEdit, StoredFiles
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import CheckpointError
from surgeon.formats.base import (
    COMPRESSED,
    coded,
    logical_dtype,
    misfit,
    require_method,
    required,
    tensors_beside,
    weight_groups,
    whole,
)
from surgeon.formats.integers import FLOATS, Integers
from surgeon.formats.packing import Places, gathered, unpacked


@dataclass(frozen=True)
class CompressedIntegers(Integers):
    """Signed numbers of `bits` bits, `packed` into words or a byte each."""

    kind: ClassVar[str] = "compressed-integers"

    packed: bool = True

    @classmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Claim `weight_packed` in I32, and matrices in I8 if the config says compressed-tensors."""
        dtype, tensors = logical_dtype(config), []
        ours = settings.get("quant_method", settings.get("format")) == COMPRESSED
        for name, info in stored.items():
            module, _, last = name.rpartition(".")
            if last == "weight_packed" and info.dtype == "I32":
                tensors.append(cls._packed(module, dtype, settings, stored))
            elif last == "weight" and info.dtype == "I8" and (ours or f"{name}_scale" in stored):
                tensors.append(cls._bytes(module, dtype, settings, stored))
        return tensors

    @classmethod
    def _packed(cls, module: str, dtype: str, settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> Coded:
        names = {"codes": "weight_packed", "scales": "weight_scale", "shape": "weight_shape"}
        require_method(settings, (COMPRESSED,), stored[f"{module}.weight_packed"], "packed whole numbers")
        parts = required(stored, module, names, COMPRESSED)
        parts |= _also(stored, module)
        codes, zeros = parts["codes"], parts.get("zeros")
        widths = _widths(settings, parts) if len(codes.shape) == 2 and codes.numel else []
        if len(widths) > 1:  # two groups of layers that only the stored shape tells apart
            columns = int(StoredFiles().span(parts["shape"], 0, 2)[1])
            widths = [width for width in widths if width[0] == columns][:1]
        if not widths:
            raise misfit(parts, "packed whole numbers of the config's bits and groups")
        columns, bits = widths[0]
        groups = _groups(parts, codes.shape[0], columns)
        wanted = (math.ceil(codes.shape[0] * bits / 32), groups)
        if not groups or (zeros is not None and (zeros.dtype, zeros.shape) != ("I32", wanted)):
            raise misfit(parts, f"packed whole numbers of {bits} bits")
        return coded(cls(bits, True), f"{module}.weight", dtype, (codes.shape[0], columns), parts)

    @classmethod
    def _bytes(cls, module: str, dtype: str, settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> Coded:
        require_method(settings, (COMPRESSED,), stored[f"{module}.weight"], "whole numbers of a byte")
        parts = required(stored, module, {"codes": "weight", "scales": "weight_scale"}, COMPRESSED)
        parts |= _also(stored, module)
        shape, zeros = parts["codes"].shape, parts.get("zeros")
        wanted = parts["scales"].numel
        if (
            len(shape) != 2
            or not _groups(parts, *shape)
            or (zeros is not None and (zeros.dtype, zeros.numel) != ("I8", wanted))
        ):
            raise misfit(parts, "whole numbers of a byte")
        return coded(cls(8, False), f"{module}.weight", dtype, shape, parts)

    @property
    def words(self) -> str:
        """Name the format and its bits."""
        return f"INT{self.bits} of compressed-tensors, {'packed' if self.packed else 'a byte each'}"

    def group_count(self, tensor: Coded) -> int:
        """Return how many groups a row has."""
        return _groups(tensor.parts, *tensor.shape)

    def groups(self, tensor: Coded, read: Stored) -> Indices:
        """Return them as ever; the stored shape is held against the tensor's here."""
        info = tensor.parts.get("shape")
        if info is not None and tuple(read.span(info, 0, info.numel).tolist()) != tensor.shape:
            raise CheckpointError(
                f"{info.path}: '{info.name}' says {read.span(info, 0, info.numel).tolist()}, but the codes and scales "
                f"of '{tensor.name}' are those of shape {list(tensor.shape)}; fetch the files again"
            )
        return super().groups(tensor, read)

    def block(self, tensor: Coded, row: Indices, group: Indices) -> Indices:
        """Scales are (rows, groups), or one for all."""
        if tensor.parts["scales"].numel == 1:
            return np.zeros(np.broadcast_shapes(row.shape, group.shape), np.int64)
        return row * self.group_count(tensor) + group

    def row_and_group(self, tensor: Coded, blocks: Indices) -> tuple[Indices, Indices]:
        """Return every row where one scale serves all."""
        if tensor.parts["scales"].numel == 1:
            return np.arange(tensor.shape[0]), np.zeros(tensor.shape[0], np.int64)
        row, group = np.divmod(blocks, self.group_count(tensor))
        return row, group

    def zeros(self, tensor: Coded, read: Stored, blocks: Indices) -> NDArray[np.int64]:
        """Return half the range where all is symmetric, else that and the stored zero points."""
        info, half = tensor.parts.get("zeros"), 1 << (self.bits - 1)
        if info is None:
            return np.full(blocks.size, half)
        if not self.packed:
            return gathered(read, info, blocks).astype(np.int64) + half
        row, group = np.divmod(blocks, info.shape[1])
        bit = row * self.bits
        places = Places(bit // 32 * info.shape[1] + group, bit % 32, self.bits, step=info.shape[1])
        return places.read(read, info).astype(np.int64)

    def places(self, tensor: Coded, indices: Indices) -> Places:
        """Rows of packed codes are bit streams."""
        row, column = np.divmod(indices, tensor.shape[1])
        bit = column * self.bits
        return Places(row * tensor.codes.shape[1] + bit // 32, bit % 32, self.bits)

    def stored_codes(self, tensor: Coded, read: Stored, indices: Indices) -> NDArray[np.uint8]:
        """Read words, or bytes whose highest bit is turned over."""
        if self.packed:
            return super().stored_codes(tensor, read, indices)
        return gathered(read, tensor.codes, indices).view(np.uint8) ^ np.uint8(128)

    def stored_rows(self, tensor: Coded, read: Stored, first: int, last: int) -> NDArray[np.uint8]:
        """Read whole rows."""
        wide = tensor.codes.shape[1]
        rows = read.span(tensor.codes, first * wide, last * wide).reshape(-1, wide)
        return unpacked(rows, self.bits, tensor.shape[1]) if self.packed else rows.view(np.uint8) ^ np.uint8(128)

    def with_stored(
        self, tensor: Coded, read: Stored, indices: Indices, codes: NDArray[np.uint8]
    ) -> dict[str, StoredEdit]:
        """Put the codes into words or bytes."""
        if self.packed:
            return super().with_stored(tensor, read, indices, codes)
        order = np.argsort(indices, kind="stable")
        return {tensor.codes.name: StoredEdit(indices[order], (codes[order] ^ np.uint8(128)).view(np.int8))}


def _also(stored: Mapping[str, TensorInfo], module: str) -> dict[str, TensorInfo]:
    names = {"zeros": f"{module}.weight_zero_point", "order": f"{module}.weight_g_idx"}
    return {role: stored[name] for role, name in names.items() if name in stored} | tensors_beside(stored, module)


def _groups(parts: Mapping[str, TensorInfo], rows: int, columns: int) -> int:
    """Return how many groups a row has by the scales' shape; 0 if they do not fit."""
    scales, order = parts["scales"], parts.get("order")
    if scales.dtype not in FLOATS or not rows * columns:
        return 0
    if scales.numel == 1 or scales.shape == (rows,):
        return 1
    if order is not None and (order.dtype, order.shape) != ("I32", (columns,)):
        return 0
    count = scales.shape[1] if len(scales.shape) == 2 and scales.shape[0] == rows else 0
    return count if count and (order is not None or columns % count == 0) else 0


def _widths(settings: Mapping[str, Any], parts: Mapping[str, TensorInfo]) -> list[tuple[int, int]]:
    """Return the columns and bits that a group of layers of the config would give the packed codes."""
    words, scales, widths = parts["codes"].shape[1], parts["scales"], set()
    for weights in weight_groups(settings):
        bits, size = weights.get("num_bits"), weights.get("group_size")
        if weights.get("type", "int") != "int" or not whole(bits, 1, 8):
            continue
        grouped = whole(size, 1, 1 << 31) and len(scales.shape) == 2
        columns = scales.shape[1] * int(size or 0) if grouped else words * 32 // int(bits or 1)
        if math.ceil(columns * int(bits or 1) / 32) == words:
            widths.add((columns, int(bits or 1)))
    return sorted(widths)
