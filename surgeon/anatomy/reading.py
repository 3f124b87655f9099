"""The anatomy of a checkpoint, read off the hollow model that transformers builds for it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from surgeon.anatomy.hollow import architecture, meta_model
from surgeon.anatomy.roles import Held, branch, role_of
from surgeon.anatomy.slots import Slot, map_names
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import MTP, TOWERS, Place, place, tower_of
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import CheckpointError

_OF_TOWERS = re.compile(
    r"vision|visual|image|audio|speech|sound|encoder(?!s)|vit\b|sam|qformer|perceiver|resampler|patch|vq"
)
_ALTERNATING = {"GptOssExperts"}  # which multiplies rows of gates and ups in turns
_PATCHER = "patcher"  # of BLT: a model of its own that says where a text is cut up, and takes no other part
_CONV1D = "Conv1D"  # transformers' own linear layer of (inputs, outputs)


@dataclass(frozen=True)
class _Model:
    """A hollow model, and where its text decoder's layers are: their paths, each with its number.

    They lie `apart` where several lists hold them: one of attentions, one of norms, as in XLM.
    """

    model: Any
    modules: Mapping[str, Any]
    layers: Mapping[str, int]
    decoder: str
    hidden: int
    text_alone: bool

    @cached_property
    def apart(self) -> bool:
        """True if layers are in several lists."""
        return len({path.rpartition(".")[0] for path in self.layers}) > 1


def read_places(checkpoint: Checkpoint) -> dict[str, Place]:
    """Return what every tensor on disk is.

    Raises:
        CheckpointError: transformers cannot build the model, or some of its parameters are made of nothing on disk.
    """
    model = meta_model(checkpoint)
    whole = _Model(
        model, dict(model.named_modules()), *decoder_layers(model), _hidden(model), architecture(checkpoint).text_alone
    )
    names = map_names(model, {name: info.shape for name, info in checkpoint.tensors.items()})
    missing = names.missing(model)
    if missing:  # the tensors are those of another model: what this one says of the rest would be of no use
        raise CheckpointError(f"{checkpoint.where}: no tensor of the right shape makes '{missing[0]}' of the model")
    targets: dict[str, list[str]] = {}
    for target, origin in names.origins.items():
        for _, name in origin.parts:
            targets.setdefault(name, []).append(target)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = {path for path, _ in model.named_buffers(remove_duplicate=False)}
    places = {}
    for name, info in checkpoint.tensors.items():
        made = targets.get(name, [])
        path = next((path for path in made if path in parameters), None)
        if path is not None and parameters[path].requires_grad:
            places[name] = replace(
                _parameter(whole, path, info, made, names.slots.get(name)), movable=name in names.slots
            )
        elif path is not None or _buffer(model, made or [name], buffers):
            layer = _layer_of(whole, path or next(iter(made), name))
            places[name] = Place(layer, "buffer", None, "buffer")
        else:
            places[name] = _absent(checkpoint, info)
    return places


def _parameter(whole: _Model, path: str, info: TensorInfo, made: Iterable[str], slot: Slot | None) -> Place:
    layer, inside = _layer_path(whole, path)
    owner = whole.modules[path.rpartition(".")[0]]
    axis = _output_axis(owner, info)
    if layer is None:
        return Place(None, _outer_role(whole, path, owner, info), axis)
    way, _ = _way(whole, inside, path)
    role = _fused([_role(whole, other, info) for other in (path, *made) if _layer_of(whole, other) == layer])
    by_name = place(info, {}).role  # where several tensors become one, as gate and up do, each has its own name
    if info.name not in (path, *made) and by_name.partition(".")[0] == role.partition(".")[0] and by_name != "other":
        role = by_name
    if role.startswith("mlp.") and (len(info.shape) == 3 or _is_stack_of_rows(owner, info)):
        axis = _expert_axis(owner, info, role, whole.hidden)
    mixer = role.startswith("attn.")
    return Place(
        layer, role, axis, branch=branch(way) if role.startswith("mlp.") else None,  # type: ignore[arg-type]
        heads=_heads(whole, inside, way) if mixer else None, matrix=_is_matrix(owner, role),
        alternating=role == "mlp.gate_up" and _alternates(owner, info, axis, slot),
    )  # fmt: skip


def _role(whole: _Model, path: str, info: TensorInfo) -> str:
    """Return the role of a parameter of a layer."""
    _, inside = _layer_path(whole, path)
    way, leaf = _way(whole, inside, path)
    return role_of([*_part(whole, inside), *way], leaf, len(info.shape))


def _fused(roles: Sequence[str]) -> str:
    """Return the role of what is split into parameters of some roles; mostly it is one."""
    blocks, parts = {role.partition(".")[0] for role in roles}, {role.partition(".")[2] for role in roles}
    if len(set(roles)) == 1 or len(blocks) > 1:
        return roles[0]
    block = blocks.pop()
    if block == "mlp" and parts == {"gate", "up"}:
        return "mlp.gate_up"
    return f"{block}.qkv" if parts - {"other"} == {"q", "k", "v"} else f"{block}.other"


def _alternates(owner: Any, info: TensorInfo, axis: int | None, slot: Slot | None) -> bool:
    """True if rows of gates and ups alternate: as the class multiplies them, or as they are loaded."""
    if type(owner).__name__ in _ALTERNATING:
        return True
    row = math.prod(info.shape[1 + (axis or 0) :])
    return slot is not None and any(stride == 2 * row for piece in slot.pieces for stride in piece.strides)


def _way(whole: _Model, inside: str, path: str) -> tuple[list[Held], str]:
    """Return the modules between a layer and a parameter, and the parameter's name in the last of them."""
    parts = path[len(inside) + 1 :].split(".")
    way, at = [], inside
    for part in parts[:-1]:
        at = f"{at}.{part}"
        way.append(Held(part, type(whole.modules[at]).__name__))
    return way, parts[-1]


def _part(whole: _Model, inside: str) -> list[Held]:
    """Return the layer itself, under its list's name, where it may be an attention or a norm."""
    name = inside.rpartition(".")[0].rpartition(".")[2]
    return [Held(name, type(whole.modules[inside]).__name__)] if whole.apart else []


def _layer_path(whole: _Model, path: str) -> tuple[int | None, str]:
    at = path
    while at := at.rpartition(".")[0]:
        if at in whole.layers:
            return whole.layers[at], at
    return None, ""


def _layer_of(whole: _Model, path: str) -> int | None:
    return _layer_path(whole, path)[0]


def _outer_role(whole: _Model, path: str, owner: Any, info: TensorInfo) -> str:
    model = whole.model
    for role, get in (("embed", model.get_input_embeddings), ("head", model.get_output_embeddings)):
        if owner is _or_none(get):
            return role
    inside = path.startswith(whole.decoder + ".") if whole.decoder else True
    tower = next((part for part in path.split(".")[:-1] if _OF_TOWERS.search(part)), None)
    if MTP.search(path):
        return "mtp"
    if tower == _PATCHER or (not whole.text_alone and (tower is not None or not inside)):
        return tower_of(tower or path)
    role = place(info, {}).role
    if re.search(r"norm", type(owner).__name__, re.IGNORECASE) and "embed" not in path.split(".")[-2]:
        return "final_norm"
    return role if role in ("embed", "head") else "outside"


def _or_none(get: Callable[[], Any]) -> Any:
    """Return a module that a model may say it has; a few have not said what it is."""
    try:
        return get()
    except NotImplementedError:
        return None


def _absent(checkpoint: Checkpoint, info: TensorInfo) -> Place:
    """Say what a tensor is that the model does not have, or has in another shape, by its name."""
    where = place(info, checkpoint.config)
    if where.role == "buffer":
        return replace(where, kind="buffer")
    tower = next((part for part in info.name.split(".")[:-1] if _OF_TOWERS.search(part)), None)
    role = where.role if where.role in ("mtp", *TOWERS) else tower_of(tower) if tower else "outside"
    return Place(None, role, where.output_axis, "absent")


def _buffer(model: Any, candidates: Iterable[str], buffers: set[str]) -> bool:
    """True if the model computes a tensor of this name, whether it would save it or not."""
    prefix = model.base_model_prefix
    names = {
        name for stored in candidates for name in (stored, f"{prefix}.{stored}", stored.removeprefix(f"{prefix}."))
    }
    return bool(names & buffers)


def _output_axis(owner: Any, info: TensorInfo) -> int | None:
    if not 1 < len(info.shape) < 4:
        return None
    if len(info.shape) == 3:  # a convolution, or as many matrices as there are experts
        return 0 if isinstance(owner, torch.nn.Conv1d) else 1
    return 1 if type(owner).__name__ == _CONV1D else 0


def _is_matrix(owner: Any, role: str) -> bool:
    """True unless a parameter multiplies no inputs: it convolves, looks up, or stands beside the projections."""
    if isinstance(owner, torch.nn.Linear) or type(owner).__name__ == _CONV1D:
        return True
    return not isinstance(owner, (torch.nn.Conv1d, torch.nn.Embedding)) and not role.endswith("other")


def _is_stack_of_rows(owner: Any, info: TensorInfo) -> bool:
    """True for a matrix that is no layer's own: experts one below the other, as DBRX has them, all of one form."""
    return len(info.shape) == 2 and not isinstance(owner, torch.nn.Linear) and type(owner).__name__ != _CONV1D


def _expert_axis(owner: Any, info: TensorInfo, role: str, hidden: int) -> int:
    """Return the output axis of experts stacked in one tensor, by which of its last two axes is the hidden one."""
    writes, first = role == "mlp.down", len(info.shape) - 2
    lies = [axis for axis in (first, first + 1) if info.shape[axis] == hidden]
    if len(lies) == 1:
        return lies[0] if writes else 2 * first + 1 - lies[0]
    return first + 1 if getattr(owner, "is_transposed", False) else first


def _heads(whole: _Model, inside: str, way: Iterable[Held]) -> int | None:
    """Return the key-value heads of the attention that a parameter belongs to, by the layer's own numbers."""
    paths = list(accumulate((held.name for held in way), "{}.{}".format, initial=inside))
    for path in paths if whole.apart else paths[1:]:
        module = whole.modules[path]
        keys = next((getattr(module, name) for name in ("k_proj", "key") if hasattr(module, name)), None)
        size = next((getattr(module, n) for n in ("head_dim", "attention_head_size") if hasattr(module, n)), None)
        if isinstance(keys, torch.nn.Linear) and isinstance(size, int) and size and keys.out_features % size == 0:
            return keys.out_features // size
        for name in ("num_key_value_heads", "num_kv_heads", "num_heads", "num_attention_heads", "n_head", "n_heads"):
            if isinstance(getattr(module, name, None), int):
                return int(getattr(module, name))
    config = whole.model.config.get_text_config()
    for name in ("num_key_value_heads", "num_attention_heads"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return None


def _hidden(model: Any) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "hidden_size", 0) or getattr(config, "n_embd", 0) or 0)


def decoder_layers(model: Any) -> tuple[dict[str, int], str]:
    """Return the paths of the text decoder's layers with their numbers, and the path of the decoder."""
    paths = {id(module): path for path, module in model.named_modules()}
    held = model.get_decoder()
    decoder = paths.get(id(held), "") if any(isinstance(m, torch.nn.ModuleList) for m in held.modules()) else ""
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) and (not decoder or path.startswith(decoder))
    }
    outermost = {
        path: module
        for path, module in lists.items()
        if not any(path.startswith(other + ".") for other in lists) and not _in_tower(path, decoder)
    }
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    named = {path: module for path, module in outermost.items() if len(module) == count}
    layers = named or {path: module for path, module in outermost.items() if any(True for _ in module.parameters())}
    return {f"{path}.{number}": number for path, module in layers.items() for number in range(len(module))}, decoder


def _in_tower(path: str, decoder: str) -> bool:
    """True for a list of another tower's layers that lies in the module which holds the decoder."""
    rest = path[len(decoder) :].strip(".")
    return bool(re.search(r"vision|visual|image|audio|speech|mtp|patcher", rest))
