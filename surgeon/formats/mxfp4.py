"""MXFP4 as gpt-oss stores it: `NAME_blocks` with two codes a byte, `NAME_scales` with a power of two per 32 codes.

The stored matrices are those of each expert, transposed: with K inputs and N outputs

    NAME[e, k, n] = code[e, n, k] * 2 ** (NAME_scales[e, n, k // 32] - 127)
    code[e, n, k] = half a byte of NAME_blocks[e, n, k // 32, k % 32 // 2], the lower half for even k

A code is a float of four bits, E2M1. The format is that of the OCP
Microscaling specification 1.0; the layout that of gpt-oss, and of `Mxfp4Config` in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored
from surgeon.checkpoint.storage import NUMPY_DTYPES, TensorInfo
from surgeon.errors import CheckpointError
from surgeon.formats.base import coded, logical_dtype, require_method
from surgeon.formats.blocks import E2M1

BLOCKS, SCALES = "_blocks", "_scales"  # behind the name of the logical tensor
WIDE = 32  # codes of a block
_PIECE = 1 << 21  # entries, about: each of them crosses to another row, so that larger pieces read less often


@dataclass(frozen=True)
class Mxfp4(E2M1):
    """E2M1 codes of stacked experts; places of codes and numbers of blocks count in the stored order (e, n, k)."""

    kind: ClassVar[str] = "mxfp4"

    @classmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Claim every `NAME_blocks` of four axes, of which the last has sixteen bytes, with its `NAME_scales`."""
        stacks = {
            name.removesuffix(BLOCKS): info
            for name, info in stored.items()
            if name.endswith(BLOCKS) and info.dtype == "U8" and len(info.shape) == 4 and info.shape[3] == WIDE // 2
        }
        if not stacks:
            return []
        require_method(settings, ("mxfp4",), next(iter(stacks.values())), "MXFP4")
        codec, dtype = cls(), logical_dtype(config)
        return [codec._claimed(name, dtype, info, stored.get(name + SCALES)) for name, info in stacks.items()]

    def _claimed(self, name: str, dtype: str, blocks: TensorInfo, scales: TensorInfo | None) -> Coded:
        if scales is None:
            raise CheckpointError(f"{blocks.path}: '{blocks.name}' has no scales: '{name + SCALES}' is not there")
        if scales.shape != blocks.shape[:3] or scales.dtype != "U8" or not blocks.numel:
            raise CheckpointError(
                f"{scales.path}: '{scales.name}' is {scales.dtype} of shape {list(scales.shape)}; '{blocks.name}' of "
                f"shape {list(blocks.shape)} needs {list(blocks.shape[:3])}, in U8"
            )
        experts, outputs, groups, _ = blocks.shape
        parts = {"codes": blocks, "scales": scales}
        return coded(self, name, dtype, (experts, groups * WIDE, outputs), parts)

    @property
    def words(self) -> str:
        """Name the format and its blocks."""
        return f"MXFP4 (E2M1), a power of two per {WIDE} codes"

    def piece(self, tensor: Coded) -> int:
        """Return whole blocks of all outputs, about two million entries."""
        band = WIDE * tensor.shape[2]
        return band * max(1, _PIECE // band)

    def decode(self, tensor: Coded, read: Stored, start: int, stop: int) -> NDArray[Any]:
        """Read the experts in question, of each the inputs in question, and turn them over."""
        _, inputs, outputs = tensor.shape
        first, last = start // outputs, -(-stop // outputs)  # rows of (expert, input)
        values = np.empty((last - first, outputs), NUMPY_DTYPES[tensor.dtype])
        for expert in range(first // inputs, -(-last // inputs)):
            low, high = max(first, expert * inputs), min(last, (expert + 1) * inputs)
            part = self._inputs(tensor, read, expert, low - expert * inputs, high - expert * inputs)
            values[low - first : high - first] = part.T
        return values.reshape(-1)[start - first * outputs : stop - first * outputs]

    def _inputs(self, tensor: Coded, read: Stored, expert: int, low: int, high: int) -> NDArray[Any]:
        """Return the values of some inputs of an expert, shape (outputs, high - low)."""
        _, inputs, outputs = tensor.shape
        first, last = low // WIDE, -(-high // WIDE)  # groups
        size, groups = outputs * inputs // 2, outputs * inputs // WIDE
        data = read.span(tensor.codes, expert * size, (expert + 1) * size).reshape(outputs, -1)
        data = data[:, first * WIDE // 2 : last * WIDE // 2]
        codes = np.empty((outputs, data.shape[1], 2), np.uint8)
        np.bitwise_and(data, 0x0F, out=codes[:, :, 0])
        np.right_shift(data, 4, out=codes[:, :, 1])
        stored = read.span(tensor.parts["scales"], expert * groups, (expert + 1) * groups).reshape(outputs, -1)
        scales = self.widened(tensor, read, stored[:, first:last])
        with np.errstate(over="ignore", invalid="ignore"):
            wide = self.numbers(codes.reshape(outputs, -1, WIDE)) * scales[:, :, None]
            values = wide.astype(NUMPY_DTYPES[tensor.dtype]).reshape(outputs, -1)
        return values[:, low - first * WIDE : high - first * WIDE]

    def locate(self, tensor: Coded, read: Stored, indices: Indices) -> tuple[Indices, Indices]:
        """Return places in the order (e, n, k), and blocks, which are runs of 32 of them."""
        _, inputs, outputs = tensor.shape
        row, output = np.divmod(indices, outputs)
        expert, of_input = np.divmod(row, inputs)
        at = (expert * outputs + output) * inputs + of_input
        return at, at // WIDE

    def members(self, tensor: Coded, read: Stored, blocks: Indices) -> Indices:
        """Return the entries of blocks."""
        _, inputs, outputs = tensor.shape
        at = (blocks[:, None] * WIDE + np.arange(WIDE)).reshape(-1)
        row, of_input = np.divmod(at, inputs)
        expert, output = np.divmod(row, outputs)
        return np.sort((expert * inputs + of_input) * outputs + output)
