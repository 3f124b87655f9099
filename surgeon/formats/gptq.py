"""GPTQ: `qweight`, whose columns are bit streams of codes along the inputs, `qzeros` and `scales` of groups of inputs.

Stored transposed: `qweight` is (inputs x bits / 32, outputs), `scales` (groups, outputs), `qzeros` (groups, outputs x
bits / 32), all words in I32; `g_idx` gives every input its group. Format `gptq` (version 1) stores zero points less
one, `gptq_v2` as they are. Codes of 2, 3, 4 or 8 bits; those of 3 bits lie across words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import CheckpointError
from surgeon.formats.base import coded, logical_dtype, misfit, require_method, required
from surgeon.formats.integers import FLOATS, Integers
from surgeon.formats.packing import Places, gathered, unpacked

_METHODS = ("gptq", "auto-round", "intel/auto-round")
_LAYOUTS = {"gptq": 1, "gptq_v2": 0}  # what is added to a stored zero point


@dataclass(frozen=True)
class Gptq(Integers):
    """Codes of `bits` bits; `offset` is what is added to the stored zero points."""

    kind: ClassVar[str] = "gptq"
    # A range of outputs is read from every row of words, so that many are read at once.
    entries_at_once: ClassVar[int] = 1 << 22

    offset: int = 1

    @classmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Claim every module that has `qweight` and `g_idx`, or `qweight` if the config says GPTQ."""
        modules = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
        ours = settings.get("quant_method") in _METHODS and "awq" not in str(settings.get("packing_format"))
        dtype = logical_dtype(config)
        return [
            cls._claimed(module, dtype, settings, stored) for module in modules if ours or f"{module}.g_idx" in stored
        ]

    @classmethod
    def _claimed(cls, module: str, dtype: str, settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> Coded:
        codes = stored[f"{module}.qweight"]
        require_method(settings, _METHODS, codes, "GPTQ")
        layout = settings.get("checkpoint_format") or "gptq"
        if layout not in _LAYOUTS:
            raise CheckpointError(
                f"{codes.path}: the config's checkpoint_format is {str(layout)[:40]!r}; of GPTQ surgeon reads "
                f"{' and '.join(_LAYOUTS)}: convert the checkpoint with GPTQModel, or name the original repository"
            )
        parts = required(stored, module, {"codes": "qweight", "scales": "scales", "zeros": "qzeros"}, "GPTQ")
        if f"{module}.g_idx" in stored:
            parts["order"] = stored[f"{module}.g_idx"]
        rows, inputs, bits = cls._sizes(parts, settings)
        groups = parts["scales"].shape[0]
        fits = (
            bits in (2, 3, 4, 8)
            and codes.dtype == parts["zeros"].dtype == "I32"
            and parts["scales"].dtype in FLOATS
            and codes.shape == (math.ceil(inputs * bits / 32), rows)
            and parts["zeros"].shape == (groups, math.ceil(rows * bits / 32))
            and (parts["order"].dtype == "I32" if "order" in parts else inputs % groups == 0)
        )
        if not fits:
            raise misfit(parts, f"GPTQ with codes of {bits} bits")
        return coded(cls(bits, _LAYOUTS[layout]), f"{module}.weight", dtype, (rows, inputs), parts)

    @staticmethod
    def _sizes(parts: Mapping[str, TensorInfo], settings: Mapping[str, Any]) -> tuple[int, int, int]:
        """Return outputs, inputs and bits: a module may have other bits than the config says of most."""
        words, scales = parts["codes"].shape, parts["scales"].shape
        if len(words) != 2 or len(scales) != 2 or not scales[0] or not words[0]:
            raise misfit(parts, "GPTQ")
        said = settings.get("bits")
        bits = said if type(said) is int and 0 < said <= 8 else 4
        if "order" not in parts:
            return words[1], words[0] * 32 // bits, bits
        inputs = parts["order"].numel
        if not inputs or math.ceil(inputs * bits / 32) == words[0]:
            return words[1], inputs, bits
        return words[1], inputs, words[0] * 32 // inputs

    @property
    def words(self) -> str:
        """Name the format, its bits and where zero points come from."""
        return f"GPTQ, {self.bits} bits, a scale and a zero point per group of inputs"

    def zeros(self, tensor: Coded, read: Stored, blocks: Indices) -> NDArray[np.int64]:
        """Return the zero points: of version 1 the stored words plus one in every field, as GPTQModel adds it."""
        row, group = self.row_and_group(tensor, blocks)
        info, bit = tensor.parts["zeros"], row * self.bits
        words = group * info.shape[1] + bit // 32
        if not self.offset or self.bits == 3:
            stored = Places(words, bit % 32, self.bits).read(read, info).astype(np.int64)
            return stored + self.offset & self.most
        ones = sum(1 << shift for shift in range(0, 32, self.bits))
        raised = gathered(read, info, words).view(np.uint32) + np.uint32(ones)
        return raised.astype(np.int64) >> bit % 32 & self.most

    def places(self, tensor: Coded, indices: Indices) -> Places:
        """Columns of words are bit streams, one an output."""
        row, column = np.divmod(indices, tensor.shape[1])
        bit = column * self.bits
        return Places(bit // 32 * tensor.shape[0] + row, bit % 32, self.bits, step=tensor.shape[0])

    def stored_rows(self, tensor: Coded, read: Stored, first: int, last: int) -> NDArray[np.uint8]:
        """Read a range of columns of words, and turn it over."""
        return unpacked(columns(tensor.codes, read, first, last).T, self.bits, tensor.shape[1])


def columns(info: TensorInfo, read: Stored, first: int, last: int) -> NDArray[Any]:
    """Return a range of the columns of a stored matrix; shape (rows, last - first)."""
    rows, width = info.shape
    if (first, last) == (0, width):
        return read.span(info, 0, info.numel).reshape(rows, width)
    at = np.arange(rows)[:, None] * width + np.arange(first, last)
    return read.entries(info, at.reshape(-1)).reshape(rows, -1)
