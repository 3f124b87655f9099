"""Quantized checkpoints that no codec knows are refused, by their config or by the names of their tensors."""

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
from surgeon.checkpoint.quantized import refuse_quantized
from surgeon.diff.comparison import compare
from surgeon.errors import CheckpointError
from surgeon.operations import Zero
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.text.corpora import builtin_corpus
from surgeon.views.inspection import look_at

NAME = "model.layers.0.mlp.down_proj"
PACKED = torch.zeros(8, 8, dtype=torch.int32)
# What each kind writes into config.json and in place of one matrix; how it is called, and the remedy where it is told.
ORIGINAL = r": name the original repository$"
PLAIN = r"save_pretrained\(FOLDER, save_original_format=False\)"
Kind = tuple[dict[str, Any], dict[str, torch.Tensor], str, str]
KINDS: dict[str, Kind] = {
    "bitsandbytes 4 bit": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"weight": torch.zeros(512, 1).byte(), "weight.absmax": torch.ones(16), "weight.quant_map": torch.ones(16)},
        "bitsandbytes",
        r"model\.dequantize\(\)`.*" + PLAIN,
    ),
    "bitsandbytes 8 bit": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"weight": torch.zeros(32, 32).char(), "SCB": torch.ones(32)},
        "bitsandbytes",
        r"model\.dequantize\(\)`.*" + PLAIN,
    ),
    "gptq": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8}},
        {"qweight": PACKED, "qzeros": PACKED, "scales": torch.ones(4, 32), "g_idx": torch.zeros(32).int()},
        "gptq",
        ORIGINAL,
    ),
    "awq": (
        {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}},
        {"qweight": PACKED, "qzeros": PACKED, "scales": torch.ones(4, 32)},
        "awq",
        ORIGINAL,
    ),
    "fp8 with block scales": (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}},
        {"weight": torch.zeros(32, 48).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(2, 3)},
        "fp8",
        r"FineGrainedFP8Config\(dequantize=True\)`.*" + PLAIN,
    ),
    "fp8 of fbgemm": (
        {"quantization_config": {"quant_method": "fbgemm_fp8"}},
        {"weight": torch.zeros(32, 48).to(torch.float8_e4m3fn), "weight_scale": torch.ones(32, 1)},
        "fp8",
        ORIGINAL,
    ),
    "compressed tensors": (
        {"compression_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        {"weight_packed": PACKED, "weight_scale": torch.ones(32, 1)},
        "compressed-tensors",
        r"CompressedTensorsConfig\(dequantize=True\)`.*" + PLAIN,
    ),
    "int8 of compressed tensors": (
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}},
        {"weight": torch.zeros(32, 48).char(), "weight_scale": torch.ones(32, 1)},
        "int8",
        r"CompressedTensorsConfig\(dequantize=True\)`.*" + PLAIN,
    ),
    "nvfp4": (
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
        {
            "weight": torch.zeros(32, 24).byte(),
            "weight_scale": torch.ones(32, 3).to(torch.float8_e4m3fn),
            "weight_scale_2": torch.tensor(1.0),
        },
        "nvfp4",
        ORIGINAL,
    ),
    "mxfp4": (
        {"quantization_config": {"quant_method": "mxfp4"}},
        {"weight_blocks": torch.zeros(32, 1, 16).byte(), "weight_scales": torch.zeros(32, 1).byte()},
        "mxfp4",
        r"Mxfp4Config\(dequantize=True\)`.*" + PLAIN,
    ),
}


# Those that a codec reads, where the config tells them (tests/formats/).
KNOWN = set(KINDS) - {"bitsandbytes 4 bit", "mxfp4"}  # these lack what their codecs need
REFUSED = [(kind, told) for kind in KINDS for told in (True, False) if not (told and kind in KNOWN)]


def quantized(folder: Path, kind: str, told: bool) -> Path:
    """Put a kind's tensors in place of one matrix; `told` says so in the config too, as its writer does."""
    changes, tensors, *_ = KINDS[kind]
    stored = {name: Checkpoint.open(folder).tensor(name).clone() for name in Checkpoint.open(folder).tensors}
    del stored[f"{NAME}.weight"]
    stored |= {f"{NAME}.{ending}": tensor.clone() for ending, tensor in tensors.items()}
    (folder / "model.safetensors").unlink()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **(changes if told else {})}))
    return folder


@pytest.mark.parametrize(("kind", "told"), REFUSED)
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
    name, remedy = KINDS[kind][2:]
    said = rf"the weights are quantized \(.*{name}.*" + (remedy if told else ORIGINAL)
    with pytest.raises(CheckpointError, match=said):
        surgeon.apply(recipe)
    assert not (tmp_path / "out").exists()
    found = look_at(str(folder))
    assert name in found["quantization"]
    assert found["hidden_size"] == 32


@pytest.mark.parametrize(("kind", "told"), [("fp8 with block scales", False), ("nvfp4", False)])
def test_what_is_packed_is_not_measured(kind: str, told: bool, make_model: ModelMaker) -> None:
    """Codes in a matrix of the right shape would make a perplexity, and it would be wrong."""
    folder = quantized(make_model("llama"), kind, told)
    spec = VerifySpec(languages=["en"], tokens=16)
    with pytest.raises(CheckpointError, match="quantized"):
        surgeon.verify_checkpoint(folder, corpus=builtin_corpus("udhr30"), spec=spec)


def test_the_remedy_for_fp8_is_one(make_model: ModelMaker, tmp_path: Path) -> None:
    """What it leads to is plain; without `save_original_format=False` the very same format would be written again."""
    import transformers

    folder = quantized(make_model("llama"), "fp8 with block scales", True)
    config = json.loads((folder / "config.json").read_text())
    others = [name.removesuffix(".weight") for name in Checkpoint.open(folder).tensors if NAME not in name]
    config["quantization_config"]["modules_to_not_convert"] = others
    (folder / "config.json").write_text(json.dumps(config))
    how = transformers.FineGrainedFP8Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.float32)
    model.save_pretrained(tmp_path / "plain", save_original_format=False)
    made = Checkpoint.open(tmp_path / "plain")
    refuse_quantized(made)
    assert made.tensors[f"{NAME}.weight"].dtype == "F32"
    assert not made.tensor(f"{NAME}.weight").any()


def test_plain_weights_are_plain_whatever_the_config_says(make_model: ModelMaker) -> None:
    """The quantizer's work was undone, and its entry stayed; the model is measured as it is."""
    folder = make_model("llama")
    spec = VerifySpec(languages=["en"], tokens=16)
    before = surgeon.verify_checkpoint(folder, corpus=builtin_corpus("udhr30"), spec=spec)
    for said in ({"quant_method": "fp8"}, {"quant_method": "bitsandbytes", "load_in_4bit": True}):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
        found = look_at(str(folder))
        assert found["quantization"] is None
        assert "quantization_config" in " ".join(found["notes"])
        after = surgeon.verify_checkpoint(folder, corpus=builtin_corpus("udhr30"), spec=spec)
        assert repr(after.measures) == repr(before.measures)


def test_differences_of_codes_are_told_to_be_that(make_model: ModelMaker) -> None:
    folder = quantized(make_model("llama"), "nvfp4", False)
    assert any("codes" in line for line in compare(folder, folder).remarks)


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
