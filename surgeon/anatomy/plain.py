"""Families whose names are plain: layer, role and axis are told by the name of a tensor, and no model need be built.

A checkpoint is plain only if every one of its tensors has a name that its family is known to have. Tests hold what is
said here against the hollow model's answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.config import LAYERS, whole_number
from surgeon.checkpoint.naming import Place, place

_LLAMA = (
    r"model\.embed_tokens\.weight|model\.norm\.weight|lm_head\.weight|"
    r"model\.layers\.(\d+)\.(?:self_attn\.(?:[qkvo]_proj\.(?:weight|bias)|[qk]_norm\.weight)|"
    r"mlp\.(?:gate|up|down)_proj\.(?:weight|bias)|(?:input|post_attention)_layernorm\.weight)"
)
_GPT2 = (
    r"(?:transformer\.)?(?:wte\.weight|wpe\.weight|ln_f\.(?:weight|bias)|"
    r"h\.(\d+)\.(?:ln_[12]|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(?:weight|bias))|lm_head\.weight"
)
PLAIN: Mapping[str, str] = {
    "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gpt2": _GPT2,
}  # fmt: skip


def plain_places(checkpoint: Checkpoint) -> dict[str, Place] | None:
    """Return what every tensor is if the names alone tell it; None if the model has to be asked."""
    form = PLAIN.get(str(checkpoint.config.get("model_type")))
    layers = whole_number(checkpoint.config, *LAYERS)
    if form is None:
        return None
    for name in checkpoint.tensors:
        found = re.fullmatch(form, name)
        if found is None or (found[1] is not None and int(found[1]) >= layers):
            return None
    return {name: place(info, checkpoint.config) for name, info in checkpoint.tensors.items()}
