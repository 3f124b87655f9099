"""Tiny quantized checkpoints, made by transformers' own quantizers where they run on a CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

BLOCK = 16


def fp8(plain: Path, folder: Path, block: int = BLOCK, **settings: Any) -> Path:
    """Quantize a bfloat16 checkpoint as FineGrainedFP8Config does, by transformers' `Fp8Quantize`."""
    import transformers
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    config = transformers.FineGrainedFP8Config(weight_block_size=(block, block), **settings)
    quantize = Fp8Quantize(type("Quantizer", (), {"quantization_config": config}))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        inside = (
            ".layers." in name and tensor.ndim > 1 and "router" not in name and not name.endswith("mlp.gate.weight")
        )
        tensors |= quantize.convert({name: tensor}) if inside else {name: tensor}
    said = {"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"}
    return written(plain, folder, tensors, {**said, "modules_to_not_convert": ["lm_head"], **settings})


def written(plain: Path, folder: Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Path:
    """Write a checkpoint with other tensors, in two shards, and what its config says of the quantizer."""
    shutil.copytree(plain, folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in shards.items():
        save_file({name: tensors[name].contiguous() for name in held}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": dict(settings)}, indent=1))
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Read all stored tensors of a checkpoint."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
