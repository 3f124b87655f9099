"""Tiny copies of what repositories hold and `save_pretrained` does not write: layers beside, other names, shards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def _as_they_are(saved: Tensors, state: Tensors) -> Tensors:
    return saved


def _nothing(saved: Tensors) -> Tensors:
    return {}


@dataclass(frozen=True)
class Layout:
    """How a repository holds a family's model.

    `arrange` makes its tensors of those that `save_pretrained` gives, or of the model's state, whatever their values
    are, so that it goes for scores too; `beside` makes those that the model does not have.
    """

    kind: str
    class_name: str
    arrange: Callable[[Tensors, Tensors], Tensors] = _as_they_are
    beside: Callable[[Tensors], Tensors] = _nothing
    config: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float32
    shards: int = 1
    copy: str = ""  # the name of a second file that holds everything again, under names of its own


def _state(saved: Tensors, state: Tensors) -> Tensors:
    """The names that modules have in transformers: what its older versions wrote, and other tools do."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.") or name in state}


def _without(prefix: str) -> Callable[[Tensors, Tensors], Tensors]:
    def arrange(saved: Tensors, state: Tensors) -> Tensors:
        return {name.removeprefix(prefix): tensor for name, tensor in saved.items()}

    return arrange


def _both_tied(saved: Tensors, state: Tensors) -> Tensors:
    return {**saved, "lm_head.weight": saved["model.embed_tokens.weight"].clone()}


def _last_layer(saved: Tensors) -> dict[str, Tensors]:
    """Return the last layer's tensors: by the prefix before its number, by the name after it."""
    found: dict[str, dict[int, Tensors]] = {}
    for name, tensor in saved.items():
        match = re.fullmatch(r"(.*?layers)\.(\d+)\.(.+)", name)
        if match and "visual" not in name and "vision" not in name:
            found.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tensor
    return {prefix: layers[max(layers)] for prefix, layers in found.items()}


def _layer_more(saved: Tensors) -> Tensors:
    """One layer more than the config says, with what projects into it: DeepSeek-V3, GLM-4.5."""
    ((prefix, layer),) = _last_layer(saved).items()
    number = 1 + max(int(match[1]) for name in saved if (match := re.match(r"model\.layers\.(\d+)\.", name)))
    embed, norm = saved["model.embed_tokens.weight"], saved["model.norm.weight"]
    more = {
        **layer, "embed_tokens.weight": embed, "enorm.weight": norm, "hnorm.weight": norm,
        "eh_proj.weight": torch.cat([embed[:32], embed[:32]], 1), "shared_head.norm.weight": norm,
        "shared_head.head.weight": embed,
    }  # fmt: skip
    return {f"{prefix}.{number}.{name}": tensor.clone() for name, tensor in more.items()}


def _mtp(prefix: str) -> Callable[[Tensors], Tensors]:
    def beside(saved: Tensors) -> Tensors:
        ((_, layer),) = _last_layer(saved).items()
        norm = next(tensor for name, tensor in saved.items() if name.endswith("norm.weight") and tensor.shape == (32,))
        made = {f"{prefix}.layers.0.{name}": tensor for name, tensor in layer.items()}
        made[f"{prefix}.fc.weight"] = torch.randn(32, 64)
        for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
            made[f"{prefix}.{name}.weight"] = norm
        return {name: tensor.clone() for name, tensor in made.items()}

    return beside


def _masks(saved: Tensors) -> Tensors:
    """The buffers that GPT-2's repositories hold."""
    mask = torch.ones(128, 128).tril()[None, None]
    return {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}


LAYOUTS: dict[str, Layout] = {
    "deepseek_v3, with its MTP layer": Layout("deepseek_v3", "DeepseekV3ForCausalLM", beside=_layer_more),
    "glm4_moe, with its MTP layer": Layout("glm4_moe", "Glm4MoeForCausalLM", beside=_layer_more),
    "qwen3_next, with its MTP layer": Layout("qwen3_next", "Qwen3NextForCausalLM", beside=_mtp("mtp")),
    "qwen3_5, with its MTP layer": Layout("qwen3_5", "Qwen3_5ForConditionalGeneration", beside=_mtp("mtp")),
    "mimo_v2_flash, with its MTP layer": Layout("mimo_v2_flash", "MiMoV2FlashForCausalLM", beside=_mtp("model.mtp")),
    "llava, language_model inside": Layout("llava", "LlavaForConditionalGeneration", arrange=_state),
    "qwen2_5_vl, language_model inside": Layout("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", arrange=_state),
    "mistral3, language_model inside": Layout("mistral3", "Mistral3ForConditionalGeneration", arrange=_state),
    "gemma3, language_model inside": Layout("gemma3", "Gemma3ForConditionalGeneration", arrange=_state),
    "mixtral, experts stacked": Layout("mixtral", "MixtralForCausalLM", arrange=_state),
    "qwen3_moe, experts stacked": Layout("qwen3_moe", "Qwen3MoeForCausalLM", arrange=_state),
    "mistral, consolidated beside": Layout("mistral", "MistralForCausalLM", copy="consolidated.safetensors"),
    "gpt2, as published": Layout("gpt2", "GPT2LMHeadModel", arrange=_without("transformer."), beside=_masks),
    "llama, tied and both stored": Layout(
        "llama", "LlamaForCausalLM", arrange=_both_tied, config=(("tie_word_embeddings", True),)
    ),
    "bert, an encoder": Layout("bert", "BertLMHeadModel", config=(("is_decoder", False),)),
    "llama, in bfloat16": Layout("llama", "LlamaForCausalLM", dtype=torch.bfloat16),
    "llama, in shards": Layout("llama", "LlamaForCausalLM", shards=3),
}


def rearrange(layout: Layout, folder: Path, state: Tensors) -> None:
    """Write a folder's tensors anew in a layout, from its saved ones and the model's state."""
    path = folder / "model.safetensors"
    saved = load_file(path)
    made = layout.arrange(saved, state)
    made = {
        name: tensor.to(layout.dtype).clone().contiguous() for name, tensor in (made | layout.beside(saved)).items()
    }
    path.unlink()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["dtype"] = str(layout.dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if layout.copy:
        names = {name.replace("self_attn", "attention").removeprefix("model."): tensor for name, tensor in made.items()}
        save_file(names, folder / layout.copy, {"format": "pt"})
    if layout.shards == 1:
        save_file(made, path, {"format": "pt"})
        return
    files = [f"model-{i + 1:05d}-of-{layout.shards:05d}.safetensors" for i in range(layout.shards)]
    placed = {name: files[i % layout.shards] for i, name in enumerate(sorted(made))}
    for file in files:
        save_file({name: made[name] for name in placed if placed[name] == file}, folder / file, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in made.values())
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
