"""What a parameter of a decoder layer does, told by the classes and names of the modules that hold it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.checkpoint.naming import NORM

# What the class of a module says of all that it holds; the first that fits decides, the outermost module first.
_BLOCKS = (
    ("linear_attn", re.compile(r"DeltaNet|(Delta|Linear|Lightning)Attention|Retention|^RwkvSelf|^xLSTMLayer")),
    ("ssm", re.compile(r"Mamba|SSM|Mixer$|RecurrentBlock|SingleMixer")),
    ("conv", re.compile(r"ShortConv")),
    ("attn", re.compile(r"Attention(?!Residual)|^MultiHead")),
    ("mlp", re.compile(r"MLP|Mlp|FeedForward|FFN|MoE|SparseMoe|Moe$|MoeBlock|LayerFF|Experts|(Intermediate|Output)$")),
)  # fmt: skip
_NAMED_BLOCKS = {"linear_attn": "linear_attn", "mamba": "ssm", "cross_attn": "attn", "self_attn": "attn", "mlp": "mlp"}
_CROSS = re.compile(r"cross|encoder_attn|EncDec|EncoderDecoder", re.IGNORECASE)
_ROUTER = re.compile(r"Router|TopK?Gate|TopKGating|MoEGate")
_NORM_CLASS = re.compile(r"norm", re.IGNORECASE)

_LEAVES: dict[str, dict[str, str]] = {
    "attn": {
        **dict.fromkeys(("q_proj", "wq", "Wq", "q_lin", "query", "q", "project_q", "query_proj"), "q"),
        **dict.fromkeys(("k_proj", "wk", "Wk", "k_lin", "key", "k", "project_k", "key_proj"), "k"),
        **dict.fromkeys(("v_proj", "wv", "Wv", "v_lin", "value", "v", "project_v", "value_proj"), "v"),
        **dict.fromkeys(("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv", "qkv_lin"), "qkv"),
        **dict.fromkeys(
            ("o_proj", "out_proj", "c_proj", "dense", "wo", "Wo", "o", "out_lin", "output", "attention_out", "proj",
             "o_b_proj", "dense_bias"), "o",
        ),
        "q_a_proj": "q_a", "q_b_proj": "q_b", "kv_a_proj_with_mqa": "kv_a", "kv_a_proj": "kv_a", "kv_b_proj": "kv_b",
        "kv_proj": "kv",
    },
    "linear_attn": {
        **dict.fromkeys(("q_proj", "q", "receptance"), "q"),
        **dict.fromkeys(("k_proj", "k", "key"), "k"),
        **dict.fromkeys(("v_proj", "v", "value"), "v"),
        **dict.fromkeys(("qkv_proj", "in_proj_qkv", "query_key_value"), "qkv"),
        **dict.fromkeys(("o_proj", "out_proj", "output", "dense"), "o"),
        **dict.fromkeys(("in_proj_qkvz", "in_proj_ba", "in_proj_a", "in_proj_b", "in_proj_z", "in_proj"), "in"),
        **dict.fromkeys(("conv1d", "q_conv1d", "k_conv1d", "v_conv1d", "conv"), "conv"),
    },
    "ssm": {
        **dict.fromkeys(("in_proj", "linear_x", "linear_y"), "in"),
        **dict.fromkeys(("out_proj", "linear_out"), "out"),
        **dict.fromkeys(("conv1d", "conv_1d"), "conv"),
    },
    "conv": {"in_proj": "in", "out_proj": "out", "conv": "conv", "conv1d": "conv"},
    "mlp": {
        **dict.fromkeys(("gate_proj", "w1", "wi_0", "w_0", "proj_up_gate"), "gate"),
        **dict.fromkeys(
            ("up_proj", "w3", "c_fc", "fc1", "dense_h_to_4h", "fc_in", "wi_1", "w_1", "lin1", "wi", "layer_1",
             "proj_up", "intermediate", "key", "v1"), "up",
        ),
        **dict.fromkeys(("gate_up_proj", "input_linear", "Wi"), "gate_up"),
        **dict.fromkeys(
            ("down_proj", "w2", "c_proj", "fc2", "dense_4h_to_h", "fc_out", "wo", "w_out", "lin2", "layer_2",
             "output_linear", "Wo", "proj_down", "output", "value"), "down",
        ),
    },
}  # fmt: skip
_FAMILIES = re.compile("^(KimiLinear|FalconMamba(?!Mixer)|Mamba2?(?!2?Mixer))")  # whose name is that of a block
_BARE = re.compile(r"^(fc[12]|c_fc|dense_h_to_4h|dense_4h_to_h|fc_in|fc_out|up_proj|down_proj|gate_proj)$")
_ROUTERS = {"router", "gate", "shared_expert_gate"}
_SHARED = re.compile(r"^shared_(experts?|mlp)$")


@dataclass(frozen=True)
class Held:
    """A module on the way from a layer to a parameter: the name that its holder has for it, and its class's name."""

    name: str
    kind: str


def role_of(way: Sequence[Held], leaf: str, axes: int) -> str:
    """Return the role of a parameter of `axes` axes that is called `leaf` in the last module of the way to it.

    The way begins below the layer. Whatever no table knows has a role by its block, such as `attn.other`, or `other`.
    """
    names = [held.name for held in way if not held.name.isdecimal()]
    last = names[-1] if names else ""
    if way and (_NORM_CLASS.search(way[-1].kind) or (NORM.search(last) and axes == 1)):
        return "norm"
    if any(held.kind == "Router" or _ROUTER.search(held.kind) for held in way):
        return "router"
    block = block_of(way)
    if block is None:
        if _BARE.match(last):
            return f"mlp.{_LEAVES['mlp'][last]}"
        if last in _LEAVES["attn"] and last.endswith(("_proj", "_lin")):
            return f"attn.{_LEAVES['attn'][last]}"
        return "router" if last in ("router", "gate") else "other"
    if block == "mlp" and last in _ROUTERS:
        return "router"
    part = None if _beside(way) else _leaf(block, names, leaf, way)
    if block == "attn" and any(_CROSS.search(held.name) or _CROSS.search(held.kind) for held in way):
        return f"cross_attn.{part if part in ('q', 'k', 'v', 'qkv', 'o') else 'other'}"
    return f"{block}.{part or 'other'}"


def block_of(way: Sequence[Held]) -> str | None:
    """Return what the outermost module that tells is: attn, linear_attn, ssm, conv or mlp; None if none tells."""
    for held in way:
        for block, fits in _BLOCKS:
            if fits.search(_short(held)):
                return block
        if held.name in _NAMED_BLOCKS:
            return _NAMED_BLOCKS[held.name]
    return None


def branch(way: Sequence[Held]) -> str | None:
    """Tell routed experts from those that every token passes."""
    if any(_SHARED.match(held.name) for held in way):
        return "shared_experts"
    return "experts" if any(held.name == "experts" or re.search(r"Experts$", held.kind) for held in way) else None


def _short(held: Held) -> str:
    """Return a class's name without what says only which family it is of, or that it is a layer inside of a layer."""
    return "" if held.kind.endswith("DecoderLayer") else _FAMILIES.sub("", held.kind)


def _leaf(block: str, names: Sequence[str], leaf: str, way: Sequence[Held]) -> str | None:
    table = _LEAVES[block]
    for name in (_plain(leaf), *reversed(names)):
        if name in table:
            return table[name]
    if block == "mlp" and "dense" in names:  # of BERT's kind, which has a module for each
        return "up" if any("Intermediate" in held.kind for held in way) else "down"
    return None


def _plain(leaf: str) -> str:
    """Return the name of a projection whose matrix or bias is held by the module itself, as experts hold theirs."""
    return "" if leaf in ("weight", "bias") else re.sub(r"_(?:weight|bias)$", "", leaf)


def _beside(way: Sequence[Held]) -> bool:
    """True inside of what is beside the projections proper: indexers, gates, compressors, adapters."""
    return any(re.search(r"Indexer|Compressor|ForgetGate|Adapter|RelativeLogits", held.kind) for held in way)
