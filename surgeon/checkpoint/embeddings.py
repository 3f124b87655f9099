"""Embeddings of tokens, tables of positions and output heads, told by their names.

Roles, ties, limits of length and what a checkpoint must hold all ask here, so that they agree.
"""

from __future__ import annotations

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
