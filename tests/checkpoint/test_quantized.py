"""Quantized checkpoints of every kind are refused, by their config or by the names of their tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ModelMaker
from safetensors.torch import save_file

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError
from surgeon.operations import Zero
from surgeon.region.region import Region
from surgeon.views.inspection import look_at

NAME = "model.layers.0.mlp.down_proj"
PACKED = torch.zeros(8, 8, dtype=torch.int32)
# What each kind writes into config.json and in place of one matrix, and the remedy.
KINDS: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "bitsandbytes 4 bit": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"weight": torch.zeros(512, 1).byte(), "weight.absmax": torch.ones(16), "weight.quant_map": torch.ones(16)},
        r"\(bitsandbytes\).*model\.dequantize\(\)",
    ),
    "bitsandbytes 8 bit": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"weight": torch.zeros(32, 32).char(), "SCB": torch.ones(32)},
        r"\(bitsandbytes\).*model\.dequantize\(\)",
    ),
    "gptq": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8}},
        {"qweight": PACKED, "qzeros": PACKED, "scales": torch.ones(4, 32), "g_idx": torch.zeros(32).int()},
        r"gptq.*name the original repository",
    ),
    "awq": (
        {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}},
        {"qweight": PACKED, "qzeros": PACKED, "scales": torch.ones(4, 32)},
        r"awq.*name the original repository",
    ),
    "fp8 with block scales": (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}},
        {"weight": torch.zeros(32, 32).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(2, 2)},
        r"\(fp8\).*FineGrainedFP8Config\(dequantize=True\)",
    ),
    "compressed tensors": (
        {"compression_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        {"weight_packed": PACKED, "weight_scale": torch.ones(32, 1)},
        r"\(compressed-tensors\).*CompressedTensorsConfig\(dequantize=True\)|\(fp8\)",
    ),
}


def quantized(folder: Path, kind: str, told: bool) -> Path:
    """Put a kind's tensors in place of one matrix; `told` says so in the config too, as its writer does."""
    changes, tensors, _ = KINDS[kind]
    stored = {name: Checkpoint.open(folder).tensor(name).clone() for name in Checkpoint.open(folder).tensors}
    del stored[f"{NAME}.weight"]
    stored |= {f"{NAME}.{ending}": tensor.clone() for ending, tensor in tensors.items()}
    (folder / "model.safetensors").unlink()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **(changes if told else {})}))
    return folder


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_refused_with_its_remedy(kind: str, told: bool, make_model: ModelMaker, tmp_path: Path) -> None:
    folder = quantized(make_model("llama"), kind, told)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""\
version: 1
name: r
model: {folder}
regions: {{a: {{select: {{random: 0.1}}}}}}
variants: {{cut: {{operations: [{{zero: a}}]}}}}
output: {tmp_path / "out"}
""")
    with pytest.raises(CheckpointError, match=r"the weights are quantized .*" + f"(?:{KINDS[kind][2]})"):
        surgeon.apply(recipe)
    assert not (tmp_path / "out").exists()
    assert look_at(str(folder))["quantization"] is not None


def test_writing_without_a_recipe_refuses_too(make_model: ModelMaker, tmp_path: Path) -> None:
    folder = quantized(make_model("llama"), "fp8 with block scales", False)
    region = Region.from_indices({f"{NAME}.weight": np.array([3])}, {f"{NAME}.weight": (32, 32)})
    with pytest.raises(CheckpointError, match="quantized"):
        surgeon.write_variant(Checkpoint.open(folder), [Zero(zero="a")], {"a": region}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_in_plain_fp8_is_none(make_model: ModelMaker) -> None:
    """Eight-bit floats without scales are the values themselves."""
    folder = make_model("llama", seed=14)
    stored = Checkpoint.open(folder)
    tensors = {name: stored.tensor(name).to(torch.float8_e4m3fn) for name in stored.tensors}
    save_file(tensors, folder / "plain.safetensors", {"format": "pt"})
    assert look_at(str(folder / "plain.safetensors"))["quantization"] is None
