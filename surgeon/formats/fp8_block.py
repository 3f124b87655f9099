"""FP8 with block scales, as DeepSeek-V3 introduced it: `weight` in F8_E4M3, `weight_scale_inv` with a scale per block.

    weight[i, j] = code[i, j] * weight_scale_inv[i // 128, j // 128]

The last blocks of a row or column may be cut off. The definition is that of DeepSeek-V3's `weight_dequant`
(inference/kernel.py of its repository); transformers calls the format `fp8` (FineGrainedFP8Config).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored
from surgeon.checkpoint.storage import NUMPY_DTYPES, TensorInfo
from surgeon.errors import CheckpointError
from surgeon.formats.base import coded, logical_dtype, require_method, whole
from surgeon.formats.blocks import AT_ONCE, ScaledBlocks, nearest_float

SCALE = "_scale_inv"  # behind the name of the tensor that it scales
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_NUMBERS = np.arange(256, dtype=np.uint8).view(_E4M3).astype(np.float32)
_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
_BLOCK = (128, 128)


@dataclass(frozen=True)
class Fp8Block(ScaledBlocks):
    """FP8 codes and scales of blocks of `rows` x `columns`; a tensor of three axes is a stack of such matrices."""

    kind: ClassVar[str] = "fp8-block"
    limit: ClassVar[float] = 464.0  # half-way from 448, the largest code, to what would come next; ties go to even

    rows: int = 128
    columns: int = 128
    exponents: bool = False  # scales in U8 are powers of two, by the config

    @classmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Claim every tensor in F8_E4M3 with scales beside it, `NAME_scale_inv`."""
        pairs = {name.removesuffix(SCALE): info for name, info in stored.items() if name.endswith(SCALE)}
        if not pairs:
            return []
        require_method(settings, ("fp8",), next(iter(pairs.values())), "scales of FP8 by blocks")
        if settings.get("weight_block_size", _BLOCK) is None:  # one scale per tensor
            return []
        codec = cls(*_block(settings, next(iter(pairs.values()))), settings.get("scale_fmt") == "ue8m0")
        dtype = logical_dtype(config)
        return [codec._claimed(name, dtype, stored, scale) for name, scale in pairs.items()]

    def _claimed(self, name: str, dtype: str, stored: Mapping[str, TensorInfo], scale: TensorInfo) -> Coded:
        codes = stored.get(name)
        if codes is None:
            raise CheckpointError(f"{scale.path}: '{scale.name}' are scales of '{name}', which is not there")
        if codes.dtype != "F8_E4M3":
            raise CheckpointError(
                f"{codes.path}: '{name}' is {codes.dtype}, though '{scale.name}' gives it scales; FP8 with block "
                "scales has codes in F8_E4M3; fetch the file again"
            )
        if len(codes.shape) < 2 or not codes.numel:
            raise CheckpointError(
                f"{codes.path}: '{name}' of shape {list(codes.shape)} has scales, but is not a matrix"
            )
        *stack, rows, columns = codes.shape
        wanted = (*stack, math.ceil(rows / self.rows), math.ceil(columns / self.columns))
        dtypes = (*_SCALE_DTYPES, "U8") if self.exponents else _SCALE_DTYPES
        if scale.shape != wanted or scale.dtype not in dtypes:
            raise CheckpointError(
                f"{scale.path}: '{scale.name}' is {scale.dtype} of shape {list(scale.shape)}; '{name}' of shape "
                f"{list(codes.shape)} in blocks of {self.rows} x {self.columns} needs {list(wanted)}, in "
                f"{', '.join(dtypes)}"
            )
        return coded(self, name, dtype, codes.shape, {"codes": codes, "scales": scale})

    @property
    def words(self) -> str:
        """Name the format and its blocks."""
        return f"FP8 (E4M3), a scale per block of {self.rows} x {self.columns}"

    def piece(self, tensor: Coded) -> int:
        """Return whole rows of blocks, about a million entries."""
        band = min(self.rows, tensor.shape[-2]) * tensor.shape[-1]
        return band * max(1, AT_ONCE // band) if band <= 4 * AT_ONCE else super().piece(tensor)

    def decode(self, tensor: Coded, read: Stored, start: int, stop: int) -> NDArray[Any]:
        """Multiply row by row, with the scales of the rows spread over their columns."""
        width = tensor.shape[-1]
        first, last = start // width, -(-stop // width)
        codes = read.span(tensor.codes, first * width, last * width).view(np.uint8).reshape(-1, width)
        across = math.ceil(width / self.columns)
        numbers, rows = self.numbers(codes), self._band(tensor, np.arange(first, last))
        bands, which = np.unique(rows, return_inverse=True)
        low, high = int(bands[0]) * across, (int(bands[-1]) + 1) * across
        scales = self.widened(tensor, read, read.span(tensor.parts["scales"], low, high)).reshape(-1, across)
        spread = np.repeat(scales, min(self.columns, width), axis=1)[:, :width]
        with np.errstate(over="ignore", invalid="ignore"):
            numbers *= spread[which] if bands.size > 1 else spread
            values = numbers.astype(NUMPY_DTYPES[tensor.dtype]).reshape(-1)
        return values[start - first * width : stop - first * width]

    def _band(self, tensor: Coded, rows: Indices) -> Indices:
        """Return the row of blocks that a row of the stack of matrices lies in."""
        height = tensor.shape[-2]
        return rows // height * math.ceil(height / self.rows) + rows % height // self.rows

    def locate(self, tensor: Coded, read: Stored, indices: Indices) -> tuple[Indices, Indices]:
        """Codes lie as the entries do; blocks are the flat indices of scales."""
        row, column = np.divmod(indices, tensor.shape[-1])
        return indices, self._band(tensor, row) * math.ceil(tensor.shape[-1] / self.columns) + column // self.columns

    def members(self, tensor: Coded, read: Stored, blocks: Indices) -> Indices:
        """Return the entries of blocks, the last ones of a row or column cut off."""
        height, width = tensor.shape[-2:]
        down, across = math.ceil(height / self.rows), math.ceil(width / self.columns)
        band, at = np.divmod(blocks, across)
        matrix, down_at = np.divmod(band, down)
        rows = (down_at * self.rows)[:, None] + np.arange(min(self.rows, height))
        columns = (at * self.columns)[:, None] + np.arange(min(self.columns, width))
        indices = ((matrix[:, None] * height + rows) * width)[:, :, None] + columns[:, None, :]
        inside = (rows < height)[:, :, None] & (columns < width)[:, None, :]
        return np.sort(indices[inside])

    def codes(self, tensor: Coded, read: Stored, at: Indices) -> NDArray[np.uint8]:
        """Return the codes; `at` is sorted, as entries are."""
        return read.entries(tensor.codes, at).view(np.uint8)

    def numbers(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the numbers of E4M3."""
        numbers: NDArray[np.float32] = _NUMBERS[codes]
        return numbers

    def nearest(self, tensor: Coded, read: Stored, numbers: NDArray[np.float64], blocks: Indices) -> NDArray[np.uint8]:
        """Round to E4M3."""
        return nearest_float(numbers, _E4M3)


def _block(settings: Mapping[str, Any], scale: TensorInfo) -> tuple[int, int]:
    """Return the size of a block by the config.

    Raises:
        CheckpointError: it is no size.
    """
    said = settings.get("weight_block_size", _BLOCK)
    sizes = list(said) if isinstance(said, list | tuple) else []
    if len(sizes) != 2 or not all(whole(size, 1, (1 << 31) - 1) for size in sizes):
        raise CheckpointError(
            f"{scale.path}: '{scale.name}' are the scales of blocks, whose size is two whole numbers, but "
            f"`weight_block_size` in config.json is {str(said)[:60]}; fetch config.json again"
        )
    return sizes[0], sizes[1]
