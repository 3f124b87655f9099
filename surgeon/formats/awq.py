"""AWQ as AutoAWQ's GEMM layout stores it: eight codes a word along the outputs, in the order 0 2 4 6 1 3 5 7.

`qweight` is (inputs, outputs / 8), `scales` (groups, outputs), `qzeros` (groups, outputs / 8); codes have four bits,
and zero points are stored as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, Stored
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import CheckpointError
from surgeon.formats.base import coded, logical_dtype, misfit, require_method, required
from surgeon.formats.gptq import columns
from surgeon.formats.integers import FLOATS, Integers
from surgeon.formats.packing import Places, unpacked

_METHODS = ("awq", "auto-round", "intel/auto-round")
_LAYOUTS = ("gemm", "marlin", None)  # `marlin` names the kernel that repacks when it loads
_NIBBLE = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where the code of each of eight outputs is


@dataclass(frozen=True)
class Awq(Integers):
    """Codes of four bits."""

    kind: ClassVar[str] = "awq"
    entries_at_once: ClassVar[int] = 1 << 22  # as of GPTQ

    @classmethod
    def claim(
        cls, config: Mapping[str, Any], settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
    ) -> list[Coded]:
        """Claim every module that has `qweight`; those of GPTQ are gone by now."""
        dtype = logical_dtype(config)
        modules = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
        return [cls._claimed(module, dtype, settings, stored) for module in modules]

    @classmethod
    def _claimed(cls, module: str, dtype: str, settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> Coded:
        codes = stored[f"{module}.qweight"]
        require_method(settings, _METHODS, codes, "AWQ")
        layout = settings.get("version") or settings.get("checkpoint_format")
        bits = settings.get("bits", settings.get("w_bit", 4))
        if (layout is not None and str(layout).lower() not in _LAYOUTS) or bits != 4:
            raise CheckpointError(
                f"{codes.path}: the config says AWQ of {str(bits)[:20]} bits in the layout {str(layout)[:40]!r}; "
                "surgeon reads four bits in `gemm`: name such a checkpoint, or the original repository"
            )
        parts = required(stored, module, {"codes": "qweight", "scales": "scales", "zeros": "qzeros"}, "AWQ")
        scales = parts["scales"]
        if len(codes.shape) != 2 or len(scales.shape) != 2 or not codes.numel or not scales.numel:
            raise misfit(parts, "AWQ")
        (inputs, words), (groups, rows) = codes.shape, scales.shape
        if not (
            words * 8 == rows
            and codes.dtype == parts["zeros"].dtype == "I32"
            and scales.dtype in FLOATS
            and inputs % groups == 0
            and parts["zeros"].shape == (groups, words)
        ):
            raise misfit(parts, "AWQ")
        return coded(cls(4), f"{module}.weight", dtype, (rows, inputs), parts)

    @property
    def words(self) -> str:
        """Name the format."""
        return "AWQ, 4 bits, a scale and a zero point per group of inputs"

    def zeros(self, tensor: Coded, read: Stored, blocks: Indices) -> NDArray[np.int64]:
        """Zero points lie as codes do, a row per group."""
        return _places(blocks).read(read, tensor.parts["zeros"]).astype(np.int64)

    def places(self, tensor: Coded, indices: Indices) -> Places:
        """Codes lie transposed, (inputs, outputs)."""
        row, column = np.divmod(indices, tensor.shape[1])
        return _places(column * tensor.shape[0] + row)

    def stored_rows(self, tensor: Coded, read: Stored, first: int, last: int) -> NDArray[np.uint8]:
        """Read a range of columns of words, put their codes in order and turn them over."""
        low, high = first // 8, -(-last // 8)
        words = columns(tensor.codes, read, low, high)
        ordered = unpacked(words, 4, (high - low) * 8).reshape(-1, high - low, 8)[:, :, _NIBBLE]
        return ordered.reshape(words.shape[0], -1)[:, first - low * 8 : last - low * 8].T


def _places(at: Indices) -> Places:
    """Return the places of flat indices of a matrix (anything, outputs): outputs are a multiple of eight."""
    return Places(at // 8, _NIBBLE[at % 8] * 4, 4)
