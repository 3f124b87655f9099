"""What a tensor is, told from its name on disk alone: layer, role, and which axis holds the outputs.

Names are asked where there is no model to ask: of region files, of families whose names are plain, of architectures
that transformers does not have. Everything else is the anatomy's to say (`surgeon/anatomy/`), in the same words.

Roles inside the decoder layers:

    attn.q attn.k attn.v attn.qkv attn.o     softmax attention (qkv where they are fused)
    attn.q_a attn.q_b attn.kv_a attn.kv_b    the same through a narrow middle, as in MLA
    cross_attn.*                             attention to what is no text
    linear_attn.*  ssm.*  conv.*             what stands in the place of attention: in, out, conv, other, ...
    mlp.gate mlp.up mlp.gate_up mlp.down     feed-forward projections, experts included
    router                                   the gate that picks experts
    norm                                     every norm vector of the layer
    other                                    a decoder-layer tensor of a kind not known here

and outside of them: `embed`, `head`, `final_norm`, `outside`; `vision`, `audio` and `encoder` for other towers; `mtp`
for layers that predict several tokens, which transformers does not build. Buffers that some checkpoints store beside
the parameters (causal masks, rotary frequencies, routers' balances) have the role `buffer` and are never touched.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from surgeon.checkpoint.config import LAYERS, of_text, whole_number
from surgeon.checkpoint.storage import TensorInfo
from surgeon.checkpoint.ties import is_embedding, is_head, is_position_table

LAYER_ROLES = (
    "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.q_a", "attn.q_b", "attn.kv", "attn.kv_a", "attn.kv_b", "attn.o",
    "attn.other",
    "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.qkv", "cross_attn.o", "cross_attn.other",
    "linear_attn.q", "linear_attn.k", "linear_attn.v", "linear_attn.qkv", "linear_attn.in", "linear_attn.conv",
    "linear_attn.o", "linear_attn.other",
    "ssm.in", "ssm.conv", "ssm.out", "ssm.other", "conv.in", "conv.conv", "conv.out", "conv.other",
    "mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down", "mlp.other",
    "router", "norm", "other",
)  # fmt: skip
TOWERS = ("vision", "audio", "encoder")
OUTER_ROLES = ("embed", "head", "final_norm", "outside", *TOWERS, "mtp")
ROLES = LAYER_ROLES + OUTER_ROLES
MIXERS = ("attn", "cross_attn", "linear_attn", "ssm", "conv")  # what mixes tokens, `mixer` together
BRANCHES = ("experts", "shared_experts")
SELECTORS = (*ROLES, *MIXERS, "mixer", "mlp", *BRANCHES)

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.([0-9]{1,9})\.(.+)$", re.DOTALL)
# Encoders of other modalities have layers too, but are no decoder.
_OTHER_TOWERS = re.compile(r"(?:^|\.)((?:vision|visual|audio|encoder)[^.]*)\.")
MTP = re.compile(r"(?:^|\.)(?:mtp|nextn|mtp_layers|draft)[^.]*\.")
_SHARED = re.compile(r"(?:^|\.)shared_(?:experts?|mlp)\.")
NORM = re.compile(r"norm|^ln_|^ln\d?$|_ln$")
_BUFFERS = {"inv_freq", "masked_bias", "rotary_emb"}
_MODULES = {
    "q_proj": "attn.q", "k_proj": "attn.k", "v_proj": "attn.v", "o_proj": "attn.o", "out_proj": "attn.o",
    "c_attn": "attn.qkv", "qkv_proj": "attn.qkv", "query_key_value": "attn.qkv",
    "gate_proj": "mlp.gate", "up_proj": "mlp.up", "down_proj": "mlp.down", "gate_up_proj": "mlp.gate_up",
    "c_fc": "mlp.up", "fc1": "mlp.up", "fc2": "mlp.down",
    "dense_h_to_4h": "mlp.up", "dense_4h_to_h": "mlp.down",
    "w1": "mlp.gate", "w3": "mlp.up", "w2": "mlp.down",
    "router": "router", "gate": "router", "shared_expert_gate": "router",
}  # fmt: skip
# Families whose matrices are stored as (inputs, outputs) by transformers' Conv1D.
_CONV1D_FAMILIES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
# Families whose fused experts are stored as (experts, inputs, outputs); others' are (experts, outputs, inputs).
_TRANSPOSED_EXPERTS = {"gpt_oss", "llama4", "llama4_text"}

Kind = Literal["parameter", "buffer", "absent"]
Branch = Literal["experts", "shared_experts"]


@dataclass(frozen=True)
class Place:
    """What a tensor is, and where it stands in the model. `output_axis` is None for vectors.

    `kind` tells parameters from buffers, which are computed or counted and have no gradient, and from what is absent
    from the model as transformers builds it. `heads` are the key-value heads of this layer, where it has any. `movable`
    is False where transformers splits or transposes the tensor, so that it is no one run of a parameter; `matrix` where
    it multiplies no inputs, as convolutions and scales do not. `alternating` is True where each row of gates is
    followed by that of its up, and not all gates by all ups.
    """

    layer: int | None
    role: str
    output_axis: int | None
    kind: Kind = "parameter"
    branch: Branch | None = None
    heads: int | None = None
    movable: bool = True
    matrix: bool = True
    alternating: bool = False

    @property
    def in_decoder(self) -> bool:
        """True for parameters of the decoder layers, the method's default scope."""
        return self.layer is not None and self.kind == "parameter"


def place(info: TensorInfo, config: Mapping[str, Any]) -> Place:
    """Tell what a tensor is from its name, its shape and the model's config."""
    axis = _output_axis(info, str(config.get("model_type")))
    if MTP.search(info.name):
        return Place(None, "mtp", axis, "absent")
    match = LAYER.search(info.name)
    if match is None or _OTHER_TOWERS.search(info.name):
        role = _outer_role(info.name)
        return Place(None, role, axis, "buffer" if role == "buffer" else "parameter")
    layer, role = int(match[1]), _layer_role(match[2], info)
    if 0 < _layers(config) <= layer:
        return Place(None, "mtp", axis, "absent")
    if role == "buffer":
        return Place(layer, role, axis, "buffer")
    heads = key_value_heads(config) if role.startswith("attn.") else 0
    return Place(
        layer, role, axis, branch=branch_of(info.name) if role.startswith("mlp.") else None, heads=heads or None
    )


def places_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, Place]:
    """Return the place of each tensor, from names and shapes alone; an empty config means the usual orientation."""
    return {name: place(TensorInfo(name, "F32", shape, Path(), 0, 0), config) for name, shape in shapes.items()}


def branch_of(name: str) -> Branch | None:
    """Tell the experts that a router picks from, and those that every token passes, by a name."""
    if _SHARED.search(name):
        return "shared_experts"
    return "experts" if ".experts." in name else None


def key_value_heads(config: Mapping[str, Any]) -> int:
    """Return how many key-value heads a config says that there are in a layer; 0 if it does not."""
    return whole_number(of_text(config), "num_key_value_heads", "num_attention_heads", "n_head")


def _layers(config: Mapping[str, Any]) -> int:
    return whole_number(of_text(config), *LAYERS)


def _output_axis(info: TensorInfo, family: str) -> int | None:
    if not 1 < len(info.shape) < 4:
        return None
    if len(info.shape) == 3:
        return 2 if family in _TRANSPOSED_EXPERTS else 1
    is_table = is_embedding(info.name) or is_position_table(info.name) or is_head(info.name)  # these are no Conv1D
    return 1 if family in _CONV1D_FAMILIES and not is_table else 0


def _parts(name: str) -> list[str]:
    parts = name.split(".")
    return parts[:-1] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts


def _outer_role(name: str) -> str:
    last, tower = _parts(name)[-1], _OTHER_TOWERS.search(name)
    if is_embedding(name) or (tower is None and is_position_table(name)):
        return "embed"
    if is_head(name):
        return "head"
    if last in _BUFFERS:
        return "buffer"
    if tower is not None:
        return tower_of(tower[1])
    if "embed" in last:  # BLOOM has a norm after its embeddings
        return "outside"
    return "final_norm" if NORM.search(last) else "outside"


def tower_of(name: str) -> str:
    """Return which of `TOWERS` a module's name speaks of."""
    if re.search("audio|speech|sound|whisper", name):
        return "audio"
    return "encoder" if name.startswith(("encoder", "patcher")) else "vision"


def _layer_role(rest: str, info: TensorInfo) -> str:
    parts = _parts(rest)
    last = parts[-1]
    if _BUFFERS & set(parts) or (last in ("attn", "attention") and len(info.shape) != 1):
        return "buffer"  # GPT-2's `attn.bias` is a causal mask, not a bias
    if NORM.search(last):
        return "norm"
    if last in _MODULES:
        return _MODULES[last]
    if last == "c_proj":
        return "attn.o" if "attn" in parts else "mlp.down"
    if last == "dense" and any("attention" in part for part in parts):
        return "attn.o"
    return "other"


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts layer 2 before layer 10."""
    return tuple((int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part) for part in name.split("."))


def matches(selector: str, name: str, where: Place) -> bool:
    """True if a role (`attn.o`), a group of roles (`attn`, `mixer`, `experts`) or a pattern of names names a tensor."""
    if selector == "mixer":
        return where.role.partition(".")[0] in MIXERS
    if selector in BRANCHES:
        return where.branch == selector
    if selector in SELECTORS:
        return where.role == selector or where.role.startswith(selector + ".")
    return fnmatch.fnmatchcase(name, selector)


def pattern(name: str) -> str:
    """Return a tensor's name with `*` in place of the numbers of layers and experts."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
