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


def plain_copy(plain: Path, quantized: Path, folder: Path) -> Path:
    """Write the checkpoint that a quantized one decodes to: `plain` with its values."""
    from surgeon.checkpoint.checkpoint import Checkpoint

    opened = Checkpoint.open(quantized)
    shutil.copytree(plain, folder)
    tensors = {name: opened.tensor(name).contiguous() for name in opened.tensors}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Read all stored tensors of a checkpoint."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def mxfp4(plain: Path, folder: Path) -> Path:
    """Quantize the experts of a gpt-oss by the format's definition, plainly: transformers needs kernels for it."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensor
            continue
        groups = tensor.float().transpose(1, 2).unflatten(2, (-1, 32))
        exponents = groups.abs().amax(-1).log2().floor() - 2  # so that the largest is at most 8, which becomes 6
        numbers = groups / exponents.exp2()[..., None]
        every = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        codes = (numbers.abs()[..., None] - every).abs().argmin(-1) + 8 * (numbers < 0)
        tensors[f"{name}_blocks"] = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        tensors[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
    return written(plain, folder, tensors, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})


def tiny_gpt_oss(folder: Path) -> Path:
    """Make a gpt-oss with two layers and four experts, in bfloat16."""
    import transformers
    from conftest import byte_tokenizer

    config = transformers.GptOssConfig(
        hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=258, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def dequantized(folder: Path):  # type: ignore[no-untyped-def]
    """Load a checkpoint as transformers does without a GPU: dequantized, in bfloat16."""
    import transformers

    method = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
    kind = {"fp8": transformers.FineGrainedFP8Config, "mxfp4": transformers.Mxfp4Config}[method]
    how = kind(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16)
