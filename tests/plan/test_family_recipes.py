"""The recipes for families of models, planned on the shapes that their makers publish; the weights are holes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import byte_tokenizer

from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import place
from surgeon.checkpoint.storage import header_bytes
from surgeon.model.model import model_places

# The published configurations, and the parameters that their makers count, in billions.
PUBLISHED: dict[str, tuple[str, dict[str, Any], float]] = {
    "llama3": ("Llama", {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    }, 1.236),
    "qwen3": ("Qwen3", {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    }, 0.596),
    "gemma3": ("Gemma3Text", {
        "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "tie_word_embeddings": True,
    }, 1.000),
    "qwen3_moe": ("Qwen3Moe", {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "tie_word_embeddings": False,
    }, 30.53),
}  # fmt: skip
NORMS = {
    "llama3": ("input_layernorm", "post_attention_layernorm"),
    "qwen3": ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"),
    "gemma3": (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
        "self_attn.q_norm", "self_attn.k_norm",
    ),
    "qwen3_moe": ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"),
}  # fmt: skip


def layer_shapes(family: str, config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a layer as they lie on disk, where experts are apart."""
    hidden, size = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield f"self_attn.{name}_proj.weight", (rows, hidden)
    yield "self_attn.o_proj.weight", (hidden, queries)
    for name in NORMS[family]:
        yield f"{name}.weight", (size if name.startswith("self_attn") else hidden,)
    experts = config.get("num_experts", 0)
    wide = config["moe_intermediate_size"] if experts else config["intermediate_size"]
    for prefix in [f"mlp.experts.{i}" for i in range(experts)] or ["mlp"]:
        yield f"{prefix}.gate_proj.weight", (wide, hidden)
        yield f"{prefix}.up_proj.weight", (wide, hidden)
        yield f"{prefix}.down_proj.weight", (hidden, wide)
    if experts:
        yield "mlp.gate.weight", (experts, hidden)


def write_sparse(family: str, folder: Path, layers: int | None = None) -> Path:
    """A checkpoint of one bfloat16 file that takes no disk; of fewer layers, if asked."""
    class_name, settings, _ = PUBLISHED[family]
    config = {**settings, "num_hidden_layers": layers or settings["num_hidden_layers"]}
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    tensors = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        tensors |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes(family, config)}
    folder.mkdir()
    header = header_bytes([(name, "BF16", shape) for name, shape in tensors.items()], {"format": "pt"})
    (folder / "model.safetensors").write_bytes(header)
    os.truncate(folder / "model.safetensors", len(header) + sum(2 * math.prod(shape) for shape in tensors.values()))
    made = getattr(transformers, f"{class_name}Config")(**config)
    (folder / "config.json").write_text(json.dumps(made.to_dict()), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_recipe_fits_the_published_model(family: str, tmp_path: Path) -> None:
    folder = write_sparse(family, tmp_path / "model")
    byte_tokenizer().save_pretrained(folder)
    checkpoint = Checkpoint.open(folder)
    entries = sum(info.numel for info in checkpoint.tensors.values())
    assert entries / 1e9 == pytest.approx(PUBLISHED[family][2], rel=0.001)
    plan = plan_recipe(f"families/{family}", output=tmp_path / "out", overrides=[f"model={folder}"])
    core = plan.regions["core"]
    roles = {place(info, checkpoint.config).role for info in core.tensors}
    assert roles == {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"}
    layers = PUBLISHED[family][1]["num_hidden_layers"]
    matrices = sum(len(shape) == 2 for _, shape in layer_shapes(family, PUBLISHED[family][1]))
    routers = 1 if family == "qwen3_moe" else 0
    assert len(core.tensors) == layers * (matrices - routers)
    of_layer = [math.prod(shape) for name, shape in layer_shapes(family, PUBLISHED[family][1])
                if len(shape) == 2 and name != "mlp.gate.weight"]  # fmt: skip
    each = int(0.01 * sum(of_layer)) if routers else sum(int(0.01 * numel) for numel in of_layer)
    assert core.entries == layers * each
    assert plan.peak_memory < 16e9
    assert {variant.bytes_to_write for variant in plan.variants.values() if variant.write} == {checkpoint.data_bytes}


@pytest.mark.parametrize("family", PUBLISHED)
def test_transformers_knows_every_tensor_under_these_names(family: str, tmp_path: Path) -> None:
    """Otherwise the shapes above would be nobody's. Two layers do."""
    checkpoint = Checkpoint.open(write_sparse(family, tmp_path / "model", layers=2))
    assert set(model_places(checkpoint)) == set(checkpoint.tensors)
