"""Embeddings of tokens, tables of positions and output heads, told by their names; and which are one parameter.

Roles, limits of length, what a checkpoint must hold, edits, freezing, measuring and comparing all ask here, so that
they agree. A model that ties its output head to its embeddings may store the head as well. Whether it ties them its
config says; where the config is silent, the family's own default does (`TIED_BY_DEFAULT`, which a test holds against
transformers). Copies that differ are two parameters whatever the config says: transformers loads them as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# Modules, whatever stands before them; a test holds embeddings and heads against every family of transformers.
_EMBEDDINGS = (
    "embed_tokens", "wte", "embed_in", "word_embeddings", "word_embedding", "tokens_embed", "tok_embeddings",
    "backbone.embeddings", "rwkv.embeddings", "transformer.embeddings", "transformer.w",
)  # fmt: skip
_POSITIONS = ("wpe", "embed_positions", "positions_embed")
_HEADS = ("lm_head", "embed_out")
# Names that may be other things inside a model, so that they count only where nothing stands before them.
_WHOLE_HEADS = frozenset({
    "output", "output_projection", "head", "proj_out", "decoder", "generator_lm_head", "lm_head.decoder",
    "cls.predictions.decoder", "pred_layer.proj", "lm_loss",
})  # fmt: skip
# Families (`model_type`) that tie where the config has no `tie_word_embeddings`; all others then do not.
TIED_BY_DEFAULT = frozenset({
    "bart", "bert", "bert-generation", "big_bird", "biogpt", "blenderbot", "blenderbot-small", "bloom", "camembert",
    "cohere", "cohere2", "cohere2_moe", "cohere_compass_text", "ctrl", "data2vec-text", "electra", "ernie",
    "ernie4_5", "ernie4_5_moe", "falcon", "falcon_mamba", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n",
    "gemma3n_text", "gemma4", "gemma4_assistant", "gemma4_text", "gemma4_unified", "gemma4_unified_assistant",
    "gemma4_unified_text", "got_ocr2", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "granite_swa", "jetmoe",
    "lfm2", "lfm2_moe", "lfm3", "mamba", "marian", "mbart", "megatron-bert", "minicpm3", "modernbert-decoder",
    "moss_transcribe_diarize", "mpt", "mvp", "openai-gpt", "opt", "pegasus", "plbart", "prophetnet",
    "recurrent_gemma", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "smollm3", "starcoder2", "trocr",
    "vaultgemma", "whisper", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "youtu", "zamba",
    "zamba2", "zaya",
})  # fmt: skip
# Families whose causal language model ties nothing, even if their config asks for it.
NEVER_TIED = frozenset({
    "bailing_hybrid", "bigbird_pegasus", "cpmant", "inkling2_text", "inkling_text", "kimi_linear", "mllama", "moshi",
    "musicgen", "musicgen_melody", "nemotron_h", "reformer", "rembert", "xlstm",
})  # fmt: skip

Ties = Sequence[Sequence[str]]  # groups of names that are one parameter


def is_embedding(name: str) -> bool:
    """True for the embeddings of tokens, by a tensor's name on disk."""
    return _ends_in(_module(name), _EMBEDDINGS)


def is_position_table(name: str) -> bool:
    """True for a learned table of positions, of one row each, beyond which a model cannot read."""
    return _ends_in(_module(name), _POSITIONS)


def is_head(name: str) -> bool:
    """True for the output head over the vocabulary, its bias included."""
    return _module(name) in _WHOLE_HEADS or _ends_in(_module(name), _HEADS)


def _module(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".bias")


def _ends_in(module: str, endings: tuple[str, ...]) -> bool:
    return module.endswith(tuple("." + ending for ending in endings)) or module in endings


def tied_groups(
    names: Iterable[str], config: Mapping[str, Any], alike: Callable[[str, str], bool]
) -> tuple[tuple[str, ...], ...]:
    """Return the groups of stored names that are one parameter, embeddings first.

    `alike` says whether two stored tensors hold the same bits; it is asked only where both a tied embedding and its
    head are stored. A tied head that is not stored yields a group of one: the embedding alone.
    """
    weights = [name for name in names if name.endswith(".weight")]
    embeddings, heads = list(filter(is_embedding, weights)), list(filter(is_head, weights))
    if not embeddings or not ties_head(config, bool(heads)):
        return ()
    first, *others = [*heads, *embeddings]
    same = {first, *(name for name in others if alike(first, name))}
    if heads and len(same) == 1:
        return ()
    return (tuple(name for name in (*embeddings, *heads) if name in same),)


def stored_copies(ties: Ties, name: str) -> tuple[str, ...]:
    """Return all stored names that are the same parameter as `name`, itself included."""
    return next((tuple(group) for group in ties if name in group), (name,))


def ties_head(config: Mapping[str, Any], head_stored: bool = True) -> bool:
    """True if the head is no parameter of its own: by the config, by the family, and by whether one is stored."""
    family, text = str(config.get("model_type")), config.get("text_config") or {}
    said = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    if said is None:
        said = family in TIED_BY_DEFAULT or not head_stored  # a head that is stored nowhere must be the embeddings
    return bool(said) and not (head_stored and family in NEVER_TIED)
