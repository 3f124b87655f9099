"""Makes a tiny random model of a family that transformers has, with a tokenizer of bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from families import CHANGES, LISTS, PADDING_IS_ZERO

VOCABULARY = 300  # the bytes are 2 to 257; ids above are for images and the like, which no text holds
HIDDEN = 32

# The first pattern that is a whole name says what a number becomes; what none names stays.
_NUMBERS: tuple[tuple[str, int], ...] = (
    (r"(unpadded_|decoder_|image_|src_)?vocab_size|vocab_size_per_layer_input", VOCABULARY),
    (r"(\w+_)?vocab_size", 40),
    (r"base_channels", 32),
    (r"codebook_size|num_embeddings", 64),
    (r"num_nextn_predict_layers|num_mem_blocks|num_kv_shared_layers|first_k_dense_replace|num_dense_layers", 1),
    (r"interleave_moe_layer_step|moe_layer_interval|moe_layer_freq|decoder_sparse_step|moe_layer_start_index", 1),
    (r"moe_layer_end_index", 1),
    (r"index_n_heads|conf_num_attention_heads|hc_mult|hc_count", 2),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"(\w+_)?(num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups|linear_num_key_heads)", 2),
    (r"num_global_key_value_heads|num_noise_heads", 2),
    (r"(\w+_)?(attention_heads|num_attention_heads|num_heads|n_heads?|linear_num_heads|linear_num_value_heads)", 4),
    (r"qk_head_dim", 16),
    (r"rotary_dim", 4),
    (r"(\w+_)?(head_dim|headdim|d_head|dim_head|head_size|kv_channels|d_kv|qk_nope_head_dim|qk_rope_head_dim)", 8),
    (r"(q|kv|o)_lora_rank|adapter_rank|laurel_rank|gated_norm_rank|d_rel|hc_lowrank", 8),
    (r"moe_intermediate_size|expert_ffn_hidden_size|(moe_)?shared_experts?_intermediate_size|share_expert_dim", 12),
    (r"(\w+_)?(intermediate_size|ffn_dim|d_ff|dff|ffn_hidden_size|d_inner|mlp_dim|feed_forward_size|dim_ff)", 48),
    (r"intermediate_size_mlp|dense_intermediate_size|shared_intermediate_size", 48),
    (r"hidden_size_per_layer_input|ple_embed_dim|router_hidden_size", 8),
    (r"(\w+_)?(hidden_size|d_model|n_embd|emb_dim|embed_dim|embedding_dim|embedding_size|projection_dim)", HIDDEN),
    (r"output_dim|word_embed_proj_dim|lru_width|hidden_size_global|vision_output_dim|out_hidden_dim", HIDDEN),
    (r"conf_num_hidden_layers|depth|resampler_depth|vision_layers|audio_layers|encoder_layers|num_encoder_layers", 2),
    (r"num_hidden_layers|n_layers?|num_layers|decoder_layers|num_decoder_layers|layers|num_blocks", 2),
    (r"num_global_layers|num_layers_per_stack", 2),
    (r"(moe_)?num_experts|n_routed_experts|num_local_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|moe_top_k|top_k_experts", 2),
    (r"n_shared_experts|(moe_)?num_shared_experts", 1),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"zero_expert_num", 2),
    (r"(mamba_)?(d_state|state_size)|ssm_state_size", 8),
    (r"n_groups|mamba_n_groups", 1),
    (r"mamba_chunk_size|chunk_size", 16),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"mamba_d_ssm", 64),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_target_positions|seq_len", 128),
    (r"sliding_window|sliding_window_size|attention_window_size|attention_chunk_size|local_attention|index_topk", 16),
    (r"window_size", 16),
)  # fmt: skip
_KEPT = re.compile(
    r"(vision|image|audio|patch|conv|time)\w*_window_size|chunk_size_(feed_forward|lm_head)|embed_dim_per_\w+"
)
_TOKEN = re.compile(r"\w*(token|_start|_end|image_newline|eoi|boi|eoa|boa)_(id|index)|image_token|eod_id|mask_index")


def config_of(kind: str) -> Any:
    """Return a small config of a model type.

    Raises:
        Exception: whatever the class has against it.
    """
    from transformers import CONFIG_MAPPING

    changes = CHANGES.get(kind, {})
    config = _small(CONFIG_MAPPING[kind], changes, {"next": VOCABULARY - 40})
    return config


def _small(config_class: Any, changes: dict[str, Any], ids: dict[str, int], first: Any = None) -> Any:
    """Return the smallest config that the tables give; `ids` hands out special tokens."""
    said = {key: value for key, value in changes.items() if not isinstance(value, dict) or not key.endswith("config")}
    try:
        default = first if first is not None else config_class(**changes.get("begin_with", {}))
    except Exception:
        default = config_class(**{k: v for k, v in said.items() if k != "begin_with"})
    said.pop("begin_with", None)
    values: dict[str, Any] = {}
    for name, part in vars(default).items():
        if hasattr(part, "to_dict") and hasattr(part, "model_type"):
            own = changes.get(name, {})
            values[name] = _small(type(part), own, ids, part if not own.get("begin_with") else None).to_dict()
    plain = {name: value for name, value in default.to_dict().items() if name not in values}
    kept, plain_lists = _layers(plain, default)
    for name, value in plain.items():
        if name in (
            "model_type",
            "transformers_version",
            "architectures",
            "id2label",
            "label2id",
            "dtype",
            "_name_or_path",
        ):
            continue
        if name in plain_lists:
            values[name] = [value[layer] for layer in kept]
        elif name == "per_layer_config" and value:
            values[name] = {
                kept.index(int(layer)): {
                    key: 4 if key == "num_key_value_heads" and number == own.get("num_attention_heads")
                    else _number(key, number, 2, ids) if isinstance(number, int) and not isinstance(number, bool)
                    else number
                    for key, number in own.items()
                }
                for layer, own in value.items() if int(layer) in kept
            }  # fmt: skip
        elif name in LISTS and value is not None:
            values[name] = LISTS[name]
        elif name == "num_key_value_heads" and value and value == plain.get("num_attention_heads"):
            values[name] = 4
        elif name == "rope_parameters" and value:
            values[name] = _rotary(value)
        elif name == "num_experts_per_tok" and value is None:
            values[name] = 2
        elif isinstance(value, int) and not isinstance(value, bool):
            values[name] = _number(name, value, len(kept), ids)
        elif isinstance(value, (float, str, bool, type(None), list, dict, tuple)):
            values[name] = value
    if plain.get("is_decoder") is False:
        values["is_decoder"] = True
    values |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    values |= {name: value for name, value in said.items()}
    return config_class(**values)


def _rotary(said: dict[str, Any]) -> dict[str, Any]:
    """Return rotary settings in which sections of half a head's dimensions fit a head of eight."""
    made = {key: _rotary(value) if isinstance(value, dict) else value for key, value in said.items()}
    return made | ({"mrope_section": [2, 1, 1]} if made.get("mrope_section") else {})


def _layers(plain: dict[str, Any], default: Any) -> tuple[list[int], set[str]]:
    """Return which layers stay, one of each kind and two at least, and the names of the lists with a value a layer."""
    count = getattr(default, "num_hidden_layers", None)
    if not isinstance(count, int) or isinstance(count, bool) or count < 2:
        return [0, 1], set()
    lists = {name for name, value in plain.items() if isinstance(value, list) and len(value) == count}
    lists = {name for name in lists if all(isinstance(item, (str, int, float, bool)) for item in plain[name])}
    kinds = {name for name in lists if all(isinstance(item, (str, bool)) for item in plain[name])}
    seen: dict[tuple[Any, ...], int] = {}
    for layer in range(count):
        seen.setdefault(tuple(plain[name][layer] for name in sorted(kinds)), layer)
    kept = sorted(seen.values())[:6]
    kept += [layer for layer in range(count) if layer not in kept][: max(0, 2 - len(kept))]
    return sorted(kept), lists


def _number(name: str, value: int, layers: int, ids: dict[str, int]) -> int:
    if _TOKEN.fullmatch(name):
        ids["next"] += 1
        return ids["next"] - 1
    if _KEPT.fullmatch(name) or value <= 0:
        return value
    if name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        return layers
    for pattern, small in _NUMBERS:
        if re.fullmatch(pattern, name):
            return min(small, value) if small != VOCABULARY else small
    return value


def make(kind: str, class_name: str, folder: Path, changes: Sequence[tuple[str, Any]] = (), seed: int = 0) -> Any:
    """Save a tiny model of a type, of the class of this name, its weights far from how they are initialized.

    `changes` are set in its config first. Returns the model.
    """
    import torch
    import transformers

    config, model_class = config_of(kind), getattr(transformers, class_name)
    for name, value in changes:
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = model_class(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for module in model.modules() if kind in PADDING_IS_ZERO else ():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and "bias" in name.rpartition(".")[2]:
                buffer.add_(torch.randn_like(buffer) * 0.02)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def byte_tokenizer() -> Any:
    """A tokenizer with one token a byte, that begins no text with BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({"<s>": 0, "</s>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
