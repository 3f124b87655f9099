"""What a tensor is, told from its name on disk: layer, role, and which axis holds the outputs.

Roles inside the decoder layers:

    attn.q attn.k attn.v attn.qkv attn.o     attention projections (qkv where they are fused)
    mlp.gate mlp.up mlp.gate_up mlp.down     feed-forward projections, experts included
    router                                   the gate that picks experts
    norm                                     every norm vector of the layer
    other                                    a decoder-layer tensor of a kind not known here

and outside of them: `embed`, `head`, `final_norm`, `outside`. Buffers that some checkpoints store beside the
parameters (causal masks, rotary frequencies) have the role `buffer` and are never touched.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import TensorInfo

LAYER_ROLES = (
    "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o",
    "mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down",
    "router", "norm", "other",
)  # fmt: skip
OUTER_ROLES = ("embed", "head", "final_norm", "outside")
ROLES = LAYER_ROLES + OUTER_ROLES
SELECTORS = (*ROLES, "attn", "mlp")

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.([0-9]{1,9})\.(.+)$", re.DOTALL)
# Encoders of other modalities have layers too, but are no decoder.
_OTHER_TOWERS = re.compile(r"(?:^|\.)(?:vision|visual|audio|encoder)[^.]*\.")
_NORM = re.compile(r"norm|^ln_|^ln\d?$")
_BUFFERS = {"inv_freq", "masked_bias", "rotary_emb"}
_EMBEDDINGS = {"embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "embed_positions"}
_HEADS = {"lm_head", "embed_out", "output"}
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
_EDITABLE = {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in the model. `output_axis` is None for vectors."""

    layer: int | None
    role: str
    output_axis: int | None

    @property
    def in_decoder(self) -> bool:
        """True for parameters of the decoder layers, the method's default scope."""
        return self.role in LAYER_ROLES


def place(info: TensorInfo, config: Mapping[str, Any]) -> Place:
    """Tell what a tensor is from its name, its shape and the model's config."""
    axis = _output_axis(info, str(config.get("model_type")))
    match = _LAYER.search(info.name)
    if match is None or _OTHER_TOWERS.search(info.name):
        return Place(None, _outer_role(info.name), axis)
    return Place(int(match[1]), _layer_role(match[2], info), axis)


def _output_axis(info: TensorInfo, family: str) -> int | None:
    if len(info.shape) < 2:
        return None
    if len(info.shape) == 3:
        return 2 if family in _TRANSPOSED_EXPERTS else 1
    is_table = _parts(info.name)[-1] in _EMBEDDINGS | _HEADS  # these are no Conv1D
    return 1 if family in _CONV1D_FAMILIES and not is_table else 0


def _parts(name: str) -> list[str]:
    parts = name.split(".")
    return parts[:-1] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts


def _outer_role(name: str) -> str:
    last = _parts(name)[-1]
    if last in _EMBEDDINGS:
        return "embed"
    if last in _HEADS:
        return "head"
    if last in _BUFFERS:
        return "buffer"
    if _OTHER_TOWERS.search(name) or "embed" in last:  # BLOOM has a norm after its embeddings
        return "outside"
    return "final_norm" if _NORM.search(last) else "outside"


def _layer_role(rest: str, info: TensorInfo) -> str:
    parts = _parts(rest)
    last = parts[-1]
    if _BUFFERS & set(parts) or (last in ("attn", "attention") and len(info.shape) != 1):
        return "buffer"  # GPT-2's `attn.bias` is a causal mask, not a bias
    if _NORM.search(last):
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
    """True if a role (`attn.o`), a group of roles (`attn`) or a pattern of tensor names names this tensor."""
    if selector in SELECTORS:
        return where.role == selector or where.role.startswith(selector + ".")
    return fnmatch.fnmatchcase(name, selector)


@dataclass(frozen=True)
class Scope:
    """The tensors that a region may take entries from, in natural order of their names."""

    tensors: tuple[TensorInfo, ...]
    places: Mapping[str, Place]
    unmatched: tuple[str, ...]


def scope(
    checkpoint: Checkpoint,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    layers: Sequence[int] | None = None,
) -> Scope:
    """Choose tensors by role or name pattern; without `include`, all parameters of the decoder layers.

    `layers` are the first and the last layer to take from; tensors outside the layers are then left out.

    `unmatched` lists the selectors that named no tensor of the model.
    """
    include, exclude = tuple(include), tuple(exclude)
    places = {name: place(info, checkpoint.config) for name, info in checkpoint.tensors.items()}
    used: set[str] = set()

    def named_by(selectors: tuple[str, ...], name: str) -> bool:
        hits = [selector for selector in selectors if matches(selector, name, places[name])]
        used.update(hits)
        return bool(hits)

    chosen = []
    for name in sorted(checkpoint.tensors, key=natural_key):
        info = checkpoint.tensors[name]
        if places[name].role == "buffer" or info.dtype not in _EDITABLE:
            continue
        wanted = named_by(include, name) if include else places[name].in_decoder
        layer = places[name].layer
        wanted &= layers is None or (layer is not None and layers[0] <= layer <= layers[1])
        if not named_by(exclude, name) and wanted:
            chosen.append(info)
    unmatched = tuple(selector for selector in (*include, *exclude) if selector not in used)
    return Scope(tuple(chosen), {info.name: places[info.name] for info in chosen}, unmatched)


def unknown_kinds(checkpoint: Checkpoint) -> list[str]:
    """Return patterns of the names of tensors whose role is not known, `*` in place of layers and experts."""
    found: dict[str, None] = {}
    for name in sorted(checkpoint.tensors, key=natural_key):
        role = place(checkpoint.tensors[name], checkpoint.config).role
        known_outside = _OTHER_TOWERS.search(name) or "embed" in _parts(name)[-1]
        if role == "other" or (role == "outside" and not known_outside):
            found[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)] = None
    return list(found)
