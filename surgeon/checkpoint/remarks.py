"""What a user should know of a checkpoint's files before anything is done with it: a line each."""

from __future__ import annotations

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.quantized import quantization, said_quantizer


def notes_on(checkpoint: Checkpoint) -> list[str]:
    """Say where index or config differ from the weights without harm."""
    lines = list(checkpoint.notes)
    stale = said_quantizer(checkpoint)
    if stale is not None and quantization(checkpoint) is None:
        lines.append(
            f"the config says that the weights are quantized ({stale}), and they are not: taken as they are; take "
            "`quantization_config` out of config.json, or transformers will not load them so"
        )
    return lines


def remarks(checkpoint: Checkpoint) -> list[str]:
    """Say the same, and which weight files are not read."""
    unread = [name for name in checkpoint.left_out if name.endswith((".safetensors", ".index.json"))]
    lines = [*notes_on(checkpoint), *(f"{name}: {checkpoint.left_out[name]}" for name in unread)]
    return [f"{checkpoint.source.name}: {line}" for line in lines]
