"""A small model and what goes with it, made without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgeon.checkpoint.storage import header_bytes

HIDDEN, WIDE, LAYERS = 8, 12, 2
SHAPES = {
    "model.embed_tokens.weight": (16, HIDDEN),
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(LAYERS)
        for name, shape in {
            "input_layernorm": (HIDDEN,), "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE),
        }.items()
    },
    "lm_head.weight": (16, HIDDEN),
}  # fmt: skip
CONFIG = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS,
    "vocab_size": 16, "tie_word_embeddings": False, "max_position_embeddings": 64, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "hidden_act": "silu", "rope_parameters": {"rope_type": "default"},
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 0, "eos_token_id": [1], "dtype": "float32",
    "text_config": None, "quantization_config": None,
}  # fmt: skip
CARD = """---
license: apache-2.0
license_link: LICENSE
language: [en, 'no']
pipeline_tag: text-generation
---
# A model
"""
RECIPE = """\
version: 1
name: r
model: {model}
corpus: {{de: {text}}}
regions:
  core: {{select: {{random: 0.1, seed: 0}}, include: [mlp]}}
  rest: {{combine: ~core}}
variants:
  cut: {{operations: [{{zero: core}}, {{scale: rest, by: 2}}]}}
output: {output}
"""


def safetensors(tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A file of float32 and bytes."""
    kinds = {np.dtype("<f4"): "F32", np.dtype("u1"): "U8"}
    specs = [(name, kinds[array.dtype], array.shape) for name, array in tensors.items()]
    return header_bytes(specs, metadata or {}) + b"".join(array.tobytes() for array in tensors.values())


def weights(seed: int, names: list[str] | None = None) -> bytes:
    random = np.random.default_rng(seed)
    return safetensors({name: random.normal(size=SHAPES[name]).astype("<f4") for name in names or SHAPES})
