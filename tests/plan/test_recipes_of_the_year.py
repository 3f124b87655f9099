"""The recipes for this year's families, planned on what their makers publish; the weights are holes.

The whole model's parameters are those that its maker counts. A few layers of it, at least one of each kind, are stored
under the names of the repository, with what lies there beside: layers that predict several tokens, towers.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.api import plan_recipe, shipped_recipes
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import header_bytes
from surgeon.model.prospect import prospect_of

ATTENTION = {"attn.q", "attn.k", "attn.v", "attn.o"}
MLP = {"mlp.gate", "mlp.up", "mlp.down"}
LATENT = {"attn.q_a", "attn.q_b", "attn.kv_a", "attn.kv_b", "attn.o"}
DELTA = {f"linear_attn.{part}" for part in ("in", "conv", "o", "other")}
SSM = {f"ssm.{part}" for part in ("in", "conv", "out", "other")}
LAYERS = ["linear_attention"] * 3 + ["full_attention"]


@dataclass(frozen=True)
class Published:
    """A model as published: its class, the config where it is not the class's default, and its parameters, in billions.

    `short` makes it a few layers long. `beside` are names that the repository holds and transformers does not build,
    each made of the shape of another. `text` says that the settings are of the text of a model that also sees.
    """

    kind: str
    class_name: str
    billions: float
    roles: set[str]
    config: dict[str, Any] = field(default_factory=dict)
    short: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    text: bool = False
    vision: dict[str, Any] = field(default_factory=dict)
    whole: bool = False


def mtp(number: int) -> dict[str, str]:
    """Name a layer more, with what projects into it."""
    layer = f"model.layers.{number}"
    return {
        f"{layer}.eh_proj.weight": "model.embed_tokens.weight",
        f"{layer}.shared_head.head.weight": "model.embed_tokens.weight",
        f"{layer}.embed_tokens.weight": "model.embed_tokens.weight",
        f"{layer}.mlp.experts.0.up_proj.weight": f"model.layers.{number - 1}.mlp.experts.0.up_proj.weight",
        f"{layer}.self_attn.o_proj.weight": f"model.layers.{number - 1}.self_attn.o_proj.weight",
    }


FAMILIES = {
    "gemma4": Published(
        "gemma4", "Gemma4ForConditionalGeneration", 4.628569344, ATTENTION | MLP | {"other"}, {
            "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35, "num_attention_heads": 8,
            "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512, "num_kv_shared_layers": 20,
            "hidden_size_per_layer_input": 256, "use_double_wide_mlp": True, "sliding_window": 512,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
        },
        {"num_hidden_layers": 10, "num_kv_shared_layers": 5, "layer_types": (
            ["sliding_attention"] * 4 + ["full_attention"]) * 2}, text=True, whole=True,
    ),
    "qwen3_5": Published(
        "qwen3_5", "Qwen3_5ForConditionalGeneration", 9.407453936, ATTENTION | MLP | DELTA | {"linear_attn.qkv"},
        short={"num_hidden_layers": 4, "layer_types": LAYERS}, text=True,
        beside={"mtp.fc.weight": "lm_head.weight",
                "mtp.layers.0.mlp.up_proj.weight": "model.language_model.layers.0.mlp.up_proj.weight"},
    ),
    "qwen3_next": Published(
        "qwen3_next", "Qwen3NextForCausalLM", 79.674391296, ATTENTION | MLP | DELTA,
        short={"num_hidden_layers": 4, "layer_types": LAYERS},
        beside={"mtp.fc.weight": "lm_head.weight",
                "mtp.layers.0.mlp.experts.0.up_proj.weight": "model.layers.0.mlp.experts.0.up_proj.weight"},
    ),
    "deepseek_v3": Published(
        "deepseek_v3", "DeepseekV3ForCausalLM", 671.026404352, LATENT | MLP,
        short={"num_hidden_layers": 4}, beside=mtp(4),
    ),
    "glm4_5": Published(
        "glm4_moe", "Glm4MoeForCausalLM", 106.852245504, ATTENTION | MLP, {"attention_bias": True, "head_dim": 128},
        {"num_hidden_layers": 2}, mtp(2),
    ),
    "gpt_oss": Published(
        "gpt_oss", "GptOssForCausalLM", 20.914757184, ATTENTION | {"attn.other", "mlp.gate_up", "mlp.down"},
        {"num_hidden_layers": 24, "num_local_experts": 32},
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "granite4": Published(
        "granitemoehybrid", "GraniteMoeHybridForCausalLM", 6.939037248, ATTENTION | SSM | {"mlp.gate_up", "mlp.down"}, {
            "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 12, "num_key_value_heads": 4,
            "num_local_experts": 64, "num_experts_per_tok": 6, "intermediate_size": 512, "vocab_size": 100352,
            "shared_intermediate_size": 1024, "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 128,
            "tie_word_embeddings": True,
            "layer_types": ["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)],
        },
        {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    ),
    "nemotron_h": Published(
        "nemotron_h", "NemotronHForCausalLM", 8.100852736, ATTENTION | SSM | {"mlp.up", "mlp.down"},
        {"hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"},
        {"hybrid_override_pattern": "M-*-"},
    ),
    "qwen3_vl": Published(
        "qwen3_vl", "Qwen3VLForConditionalGeneration", 4.437815808, ATTENTION | MLP, {
            "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
        },
        {"num_hidden_layers": 2}, text=True, vision={
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    ),
}  # fmt: skip


def hollow(family: Published, short: bool) -> Any:
    """Build the model that transformers has for the published config, without memory."""
    import torch
    import transformers

    settings = {**family.config, **(family.short if short else {})}
    tied = {"tie_word_embeddings": settings["tie_word_embeddings"]} if "tie_word_embeddings" in settings else {}
    if family.text:
        settings = {"text_config": settings, **({"vision_config": family.vision} if family.vision else {}), **tied}
    config = transformers.CONFIG_MAPPING[family.kind](**settings)
    with torch.device("meta"):
        return getattr(transformers, family.class_name)(config)


def write_sparse(family: Published, folder: Path) -> Path:
    """Store a few layers in bfloat16 under the names that are published, in shards that take no disk."""
    from transformers.core_model_loading import revert_weight_conversion

    model = hollow(family, short=True)
    stored = revert_weight_conversion(model, dict(model.state_dict()))
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if model.config.get_text_config().tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    shapes |= {name: shapes[like] for name, like in family.beside.items()}
    folder.mkdir()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(2 * math.prod(other) for other in shards[-1].values()) > 4e9:
            shards.append({})
        shards[-1][name] = shape
    placed = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        header = header_bytes([(name, "BF16", shape) for name, shape in shard.items()], {"format": "pt"})
        (folder / file).write_bytes(header)
        os.truncate(folder / file, len(header) + sum(2 * math.prod(shape) for shape in shard.values()))
        placed |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}), encoding="utf-8")
    said = {**model.config.to_dict(), "architectures": [family.class_name]}
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_there_is_a_recipe_for_each() -> None:
    of_before = {"llama3", "qwen3", "gemma3", "qwen3_moe"}
    names = {name.removeprefix("families/") for name in shipped_recipes() if name.startswith("families/")}
    assert names == set(FAMILIES) | of_before


@pytest.mark.parametrize("name", FAMILIES)
def test_the_recipe_fits_the_published_model(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    assert sum(p.numel() for p in hollow(family, short=False).parameters()) / 1e9 == pytest.approx(family.billions)

    folder = write_sparse(family, tmp_path / "model")
    plan = plan_recipe(f"families/{name}", output=tmp_path / "out", overrides=[f"model={folder}"])
    checkpoint, core = plan.checkpoint, plan.regions["core"]
    places = anatomy_of(checkpoint).places
    assert {places[info.name].role for info in core.tensors} == family.roles
    # Everything of the layers is in the region, but norms, routers and what is counted.
    layers = re.compile(r"(?:^|\.)layers\.\d+\.")
    beside = {n for n in checkpoint.tensors if n in family.beside or re.search(r"visual|vision|audio", n)}
    inside = {n for n in checkpoint.tensors if layers.search(n)} - beside
    left = {places[n].role for n in inside - {info.name for info in core.tensors}}
    assert left <= {"norm", "router", "buffer"}
    assert {info.name for info in core.tensors} <= inside
    assert all(places[info.name].movable for info in core.tensors)
    assert {places[n].role for n in family.beside} <= {"mtp"}
    if plan.regions["core"].select.scope == "layer":  # type: ignore[union-attr]
        groups: dict[int | None, int] = {}
        for info in core.tensors:
            groups[places[info.name].layer] = groups.get(places[info.name].layer, 0) + info.numel
        assert core.entries == sum(int(0.01 * numel) for numel in groups.values())
    else:
        assert core.entries == sum(int(0.01 * info.numel) for info in core.tensors)
    assert Checkpoint.open(folder).data_bytes == plan.variants["core-zeroed"].bytes_to_write
    assert prospect_of(checkpoint).whole == family.whole  # as the plan has found out and kept
