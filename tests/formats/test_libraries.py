"""Formats beside the libraries that define them, where these are installed: what they make is read as they read it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ModelMaker
from quantizing import written
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.region.region import Region

RECIPE = """\
version: 1
name: library
model: {model}
regions: {{drawn: {{select: {{random: 0.01, seed: 3}}, include: ["*.k_proj.weight", "*.down_proj.weight"]}}}}
variants: {{cut: {{operations: [{{zero: drawn}}]}}}}
output: {out}
"""
SCHEMES = ["FP8", "FP8_DYNAMIC", "W4A16", "W4A16_ASYM", "W3A16", "W8A16", "W8A8", "NVFP4A16", "MXFP4A16", "MXFP8A16"]
WIDE = 32


@pytest.fixture(scope="module")
def plain(make_model: ModelMaker) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    return make_model("llama", dtype="bfloat16", tie_word_embeddings=False, head_dim=16, **sizes)


def load(folder: Path, **how: Any) -> torch.nn.Module:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **how).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(2, 34)[None]).logits


def compressed(plain: Path, folder: Path, scheme: str) -> Path:
    """Compress the linear layers, with plain scales that are the largest magnitudes, and save as the library does."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    model, chosen = load(plain), preset_name_to_scheme(scheme, ["Linear"])
    if chosen.weights.group_size == 128:
        chosen.weights.group_size = WIDE
    apply_quantization_config(model, QuantizationConfig(config_groups={"layers": chosen}, ignore=["lm_head"]))
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        args, weight, whole = module.quantization_scheme.weights, module.weight.data, {}
        if args.strategy in ("group", "tensor_group"):
            parts = weight.unflatten(-1, (-1, args.group_size))
        else:
            parts = weight[:, None] if args.strategy == "channel" else weight.reshape(1, 1, -1)
        if args.strategy == "tensor_group":
            found = generate_gparam(weight.amin(), weight.amax())
            module.weight_global_scale.data.copy_(found.reshape(module.weight_global_scale.shape))
            whole = {"global_scale": module.weight_global_scale}
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args, **whole)
        module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))
        if hasattr(module, "input_scale"):
            module.input_scale.data.fill_(0.5)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


def bits_and_bytes(plain: Path, folder: Path, **how: Any) -> Path:
    import transformers

    load(plain, quantization_config=transformers.BitsAndBytesConfig(**how)).save_pretrained(folder)
    return folder


def cut(model: Path, folder: Path) -> Path:
    """Zero one entry in a hundred; every byte that is no code of these stays."""
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, out=folder / "out"))
    surgeon.apply(recipe)
    return folder / "out"


def bits(values: torch.Tensor) -> torch.Tensor:
    return (values + 0.0).contiguous().view(torch.int16)  # bitsandbytes' CPU kernel gives FP4's second zero a sign


def check(quantized: Path, folder: Path, decoded: Callable[[Path], torch.nn.Module], native: bool = True) -> None:
    """Hold what is decoded to what the library decodes, and the variant's logits to those of the model with zeros."""
    model, opened = decoded(quantized), Checkpoint.open(quantized)
    state = model.state_dict()
    for name in opened.tensors:
        assert torch.equal(bits(opened.tensor(name)), bits(state[name])), name
    out = cut(quantized, folder)
    region = Region.load(out / "regions" / "drawn.region.safetensors")
    assert any(name.endswith("k_proj.weight") and region.indices(name).size for name in region)
    variant = out / "variants" / "cut"
    before, after = load_file(quantized / "model.safetensors"), load_file(variant / "model.safetensors")
    differ = {name for name in before if not torch.equal(before[name].view(-1), after[name].view(-1))}
    assert all(name.rpartition(".")[2] in ("weight", "weight_packed", "qweight") for name in differ)
    for path in quantized.iterdir():
        assert path.suffix == ".safetensors" or (variant / path.name).read_bytes() == path.read_bytes()
    plain_logits = logits(model)
    with torch.no_grad(), surgeon.cut(model, region):
        expected = logits(model)
    assert not torch.equal(plain_logits, expected)
    assert torch.equal(logits(decoded(variant)), expected)
    if native:  # as it is loaded by whoever uses it
        assert torch.equal(logits(load(variant)), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_tensors(scheme: str, plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    import transformers

    quantized = compressed(plain, tmp_path / "model", scheme)
    how = transformers.CompressedTensorsConfig(dequantize=True)
    # Those that quantize activations too compute otherwise when they are loaded as they are; transformers 5.23 loads
    # none that has zero points.
    check(
        quantized, tmp_path / "run", lambda folder: load(folder, quantization_config=how), native=scheme.endswith("A16")
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "how",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"load_in_8bit": True},
    ],
    ids=["nf4", "nf4-nested", "fp4", "int8"],
)
def test_bitsandbytes(how: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    quantized = bits_and_bytes(plain, tmp_path / "model", **how)

    def decoded(folder: Path) -> torch.nn.Module:
        model = load(folder)
        model.dequantize(dtype=torch.bfloat16)
        return model

    check(quantized, tmp_path / "run", decoded, native=False)
    load(tmp_path / "run" / "out" / "variants" / "cut")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "bits", "version"),
    [("gptq", 2, 2), ("gptq", 3, 1), ("gptq", 4, 1), ("gptq", 4, 2), ("gptq", 8, 1), ("awq", 4, 1)],
)
def test_gptqmodel(method: str, bits: int, version: int, plain: Path, tmp_path: Path) -> None:
    """Packed and dequantized by GPTQModel; groups are drawn where the format has act order."""
    pytest.importorskip("gptqmodel")
    quantized = packed(plain, tmp_path / "model", method, bits, version)
    from gptqmodel.utils.model_dequant import dequantize_model

    def decoded(folder: Path) -> torch.nn.Module:
        target = tmp_path / f"dense-{folder.name}"
        if method == "gptq":
            dequantize_model(folder, target, target_dtype=torch.bfloat16, device="cpu")
        else:  # `dequantize_model` of 7.7 leaves the codes of AWQ interleaved, what the model computes with does not
            interleaved(plain, folder, target)
        return load(target)

    check(quantized, tmp_path / "run", decoded, native=False)


def interleaved(plain: Path, folder: Path, target: Path) -> None:
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".qweight")]:
        module = name.removesuffix("qweight")
        words, zeros, scales = (tensors.pop(module + part) for part in ("qweight", "qzeros", "scales"))
        dense = dequantize_gemm(words, zeros, scales.float(), 4, WIDE).T
        tensors[f"{module}weight"] = dense.to(torch.bfloat16).contiguous()
    shutil.copytree(plain, target)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})


def packed(plain: Path, folder: Path, method: str, bits: int, version: int) -> Path:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if ".layers." not in name or weight.ndim != 2:
            tensors[name] = weight
            continue
        (rows, columns), most = weight.shape, 2**bits - 1
        order = torch.arange(columns) // WIDE
        if method == "gptq":
            order = order[torch.randperm(columns, generator=torch.Generator().manual_seed(rows))]
        linear = torch.nn.Linear(columns, rows, bias=False)
        linear.weight.data = weight.float()
        groups = torch.stack([linear.weight.data[:, order == group] for group in range(columns // WIDE)], 1)
        scales = ((groups.amax(2) - groups.amin(2)) / most).half().float()
        zeros = (-groups.amin(2) / scales).round().clamp(1, most)
        kind = TorchLinear if method == "gptq" else AwqTorchLinear
        module = kind(
            bits=bits, group_size=WIDE, sym=False, desc_act=method == "gptq", in_features=columns, out_features=rows,
            bias=False, pack_dtype=torch.int32,
        )  # fmt: skip
        if method == "gptq":
            module.pack_original(linear, scales, zeros, order.to(torch.int32))
        else:
            module.pack(linear, scales, zeros)
        if method == "gptq" and version == 1:
            convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=bits, group_size=WIDE))
        held = dict(module.named_buffers())
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            if held.get(part) is not None and (part != "g_idx" or method == "gptq"):
                tensors[name.removesuffix("weight") + part] = held[part]
    layout = {"checkpoint_format": "gptq_v2" if version == 2 else "gptq"} if method == "gptq" else {"version": "gemm"}
    said = {"quant_method": method, "bits": bits, "group_size": WIDE, "desc_act": method == "gptq", "sym": False}
    made = written(plain, folder.with_name("sharded"), tensors, {**said, "zero_point": True, **layout})
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder
