"""What the general way of making a config small gets wrong, family by family, and the list of families."""

from __future__ import annotations

from typing import Any, NamedTuple

# Lists of layers' numbers and the like, where there are two layers.
LISTS: dict[str, Any] = {
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
    "global_attn_indexes": [1],
}

# Types whose classes make the embedding of padding zero whatever is on disk.
PADDING_IS_ZERO = {"youtu"}

# What a config of a type is given beside the tables in tiny.py; `text_config` and the like for what lies in it.
_HEADS = {"head_dim": 8}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_SECTIONS = {"text_config": {"rope_parameters": {**_ROTARY, "mrope_section": [2, 1, 1]}}}
_FOUR_SECTIONS = {"head_dim": 8, "rope_parameters": {**_ROTARY, "mrope_section": [1, 1, 1, 1]}}
_COMPASS = {"rope_parameters": {"full_attention": _ROTARY}}
_DOTS_3 = {
    "head_dim": 16,
    "per_layer_config": {1: {
        "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 16,
    }},
}  # fmt: skip
_GEMMA_3N = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_hidden_layers": 4, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    "intermediate_size": [48, 48, 48, 48],
}  # fmt: skip
_QWEN_4 = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
    "indexer_compress_ratio": 4, "ple_layer_ids": [1], "ple_embed_dim": 32, "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 2,
}  # fmt: skip
_ASSISTANT = {"begin_with": {"text_config": {
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2,
    "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"],
}}, "text_config": {"num_kv_shared_layers": 2}}  # fmt: skip
_UNIFIED = {"text_config": {
    "num_kv_shared_layers": 2, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
}}  # fmt: skip
_INKLING = {"n_layers_per_attn_res_block": 1}  # so that layers see what earlier ones made
_MIXTURE = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
_ZAMBA = {
    "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
    "num_hidden_layers": 5, "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 290}},
    "cohere_compass": {"text_config": _COMPASS},
    "cohere_compass_text": _COMPASS,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2}},
    "diffusion_gemma": {"text_config": _MIXTURE},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "dots3_note": {
        "text_config": _DOTS_3,
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _DOTS_3,
    "emu3": {"vocabulary_map": {"<image>": 290, "<|extra_200|>": 291, "<|visual token 000000|>": 292}},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**_ROTARY, "mrope_section": [1, 1, 2]}}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "gemma3n": {"text_config": _GEMMA_3N},
    "gemma3n_text": _GEMMA_3N,
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _UNIFIED,
    "glm46v": _SECTIONS,
    "glm4v": _SECTIONS,
    "glm4v_moe": {"text_config": {"rope_parameters": {**_ROTARY, "mrope_section": [1, 1, 0]}}},
    "glm_ocr": _SECTIONS,
    "glmga": _SECTIONS,
    "granite4_vision": {
        "downsample_rate": "2/4",
        "deepstack_layer_map": [[0, 0], [1, 1]],
        "spatial_target_layers": [0, 1, 0, 1],
        "vision_config": {"hidden_size": 64},
    },
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
    "hunyuan_vl": {**_FOUR_SECTIONS, "text_config": _FOUR_SECTIONS},
    "inkling2": {"text_config": _INKLING},
    "inkling2_text": _INKLING,
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": 32}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "ministral": {**_HEADS, "layer_types": ["full_attention", "sliding_attention"]},
    "mistral4": {"head_dim": 16},
    "molmo2": {"adapter_config": {"vision_feature_layer": [0, 1]}},
    "moonshine_streaming": {"num_key_value_heads": 4, "num_attention_heads": 4},
    "nemotron": {"num_key_value_heads": 2, **_HEADS},
    "paddleocr_vl": _SECTIONS,
    "qwen2_5_omni_thinker": _SECTIONS,
    "qwen2_5_vl": _SECTIONS,
    "qwen2_vl": _SECTIONS,
    "qwen4_exp": {"text_config": _QWEN_4},
    "qwen4_exp_text": _QWEN_4,
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16], "attention_head_size": 8},
    "step3p7": {"text_config": {"sliding_window": 16}},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": {**_ZAMBA, "n_mamba_heads": 8, "mamba_headdim": 8, "hybrid_layer_ids": [2, 4]},
}


def _takes(kind: str, class_name: str) -> bool:
    """True if a class takes the config of a type itself, and not that of a part of it."""
    import transformers

    wanted = getattr(getattr(transformers, class_name), "config_class", None)
    own = transformers.CONFIG_MAPPING[kind]
    return own is wanted or wanted not in (getattr(own, "sub_configs", None) or {}).values()


class Case(NamedTuple):
    """A type of model, the class that its checkpoints are loaded with, and the heading of docs/models.md."""

    kind: str
    class_name: str
    group: str


GROUPS = {
    "Causal language models": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    "Image and text to text": ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",),
    "Encoder-decoders and speech": (
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    ),
}


def families() -> dict[str, Case]:
    """Return every case by name: mostly the type; where a type has another class in a later group, that is added."""
    from transformers.models.auto import modeling_auto

    found: dict[str, Case] = {}
    for group, mappings in GROUPS.items():
        for kind, name in [pair for mapping in mappings for pair in getattr(modeling_auto, mapping).items()]:
            if not _takes(kind, name) or name in {case.class_name for case in found.values() if case.kind == kind}:
                continue
            found[kind if kind not in found else f"{kind} ({name})"] = Case(kind, name, group)
    return found
