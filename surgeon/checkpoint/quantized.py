"""Checkpoints whose weights a quantizer packed: a flat index then names no parameter, so surgery refuses them."""

from __future__ import annotations

from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError

# Last parts of tensor names that only quantizers write, for checkpoints whose config says nothing.
_TRACES = {
    "qweight": "gptq or awq", "qzeros": "gptq or awq",
    "absmax": "bitsandbytes", "SCB": "bitsandbytes",
    "weight_scale_inv": "fp8", "weight_scale": "fp8", "weight_packed": "compressed-tensors",
}  # fmt: skip
_LOADED_WITH = {
    "fp8": "FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "Mxfp4Config(dequantize=True)",
    "compressed-tensors": "CompressedTensorsConfig(dequantize=True)",
}


def quantization(checkpoint: Checkpoint) -> str | None:
    """Return the quantizer's name as the config or the tensors' names tell it; None if nothing is quantized."""
    config = checkpoint.config
    for place in (config, config.get("text_config") or {}):
        found: Any = place.get("quantization_config") or place.get("compression_config")
        if found:
            return str(found.get("quant_method", "unknown") if isinstance(found, dict) else found)
    endings = (name.rpartition(".")[2] for name in checkpoint.tensors)
    return next((_TRACES[ending] for ending in endings if ending in _TRACES), None)


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose weights are quantized.

    Raises:
        CheckpointError: they are.
    """
    method = quantization(checkpoint)
    if method is None:
        return
    remedy = "name the original repository"
    if method == "bitsandbytes":
        remedy = "load it in transformers, call `model.dequantize()` and `save_pretrained` it, or " + remedy
    elif method in _LOADED_WITH:
        remedy = f"load it in transformers with {_LOADED_WITH[method]} and `save_pretrained` it, or {remedy}"
    raise CheckpointError(
        f"{checkpoint.where}: the weights are quantized ({method}); surgery needs the unquantized checkpoint: {remedy}"
    )
