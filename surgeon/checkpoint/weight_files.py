"""Which files hold a checkpoint's weights: those that `from_pretrained` of transformers would load, and no others.

Of a folder, as of a repository on the Hub, it takes the first of these that is there:

    the file or index that `transformers_weights` in config.json names
    model.safetensors, whatever index or shards lie beside it
    model.safetensors.index.json, and all that the shards hold which it names, be a tensor in the index or not

It takes nothing else. For want of these a complete set of shards without an index is taken here, or the only
safetensors file; variants of such a source get the index that it lacks. What lies there and is not taken is said by
name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgeon.checkpoint.config import LAYERS, of_text, whole_number
from surgeon.checkpoint.naming import LAYER, pattern
from surgeon.checkpoint.plain_json import NotPlain, as_texts, read_object
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.sources import Source
from surgeon.checkpoint.storage import File, TensorInfo, read_header
from surgeon.checkpoint.ties import is_embedding, is_head, ties_head
from surgeon.errors import CheckpointError, shorten

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})\.safetensors$")
_FINAL_NORMS = frozenset({
    "model.norm.weight", "transformer.ln_f.weight", "model.final_layernorm.weight", "gpt_neox.final_layer_norm.weight",
    "model.decoder.final_layer_norm.weight",
})  # fmt: skip
# How weights in other formats are named.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".npz")
_OTHER_INDEXES = tuple(f"{suffix}.index.json" for suffix in _OTHER_WEIGHTS)
# What a trainer leaves beside weights, to go on from there.
_TRAINERS = re.compile(
    r"(?:optimizer|scheduler|rng_state|scaler|trainer_state\.json$|training_args\.bin$|zero_to_fp32\.py$|latest$"
    r"|events\.out\.tfevents)"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files to read, the index that names them, if one does, and why what else lies there is left out."""

    files: tuple[File, ...]
    index: Path | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


def find_weights(source: Source, config: Mapping[str, Any]) -> WeightFiles:
    """Choose the weight files of a folder or repository; of a source that is a file, that file.

    Raises:
        CheckpointError: there are none, a file of them is missing, or they are an adapter's.
    """
    if source.path.is_file():
        return WeightFiles((source.path,))
    listed: dict[str, File] = {path.name: path for path in source.path.glob("*") if path.is_file()}
    listed |= source.remote
    _refuse_adapter(source, listed, config)
    # Files whose names begin with a dot are notes that systems keep; macOS has one beside every file on foreign disks.
    weights = {name: listed[name] for name in sorted(listed) if name.endswith(".safetensors") and name[0] != "."}
    files, index, why = _chosen(source, listed, weights, config)
    taken = {file.name for file in files}
    left_out = {name: why + _held(file) for name, file in weights.items() if name not in taken}
    for name in sorted(listed):
        if name.endswith(".safetensors.index.json") and name[0] != "." and (index is None or name != index.name):
            left_out[name] = "an index that transformers does not read, " + why.removeprefix("not loaded, ")
        elif name.startswith("._"):
            left_out[name] = "notes that macOS keeps beside files"
        elif _TRAINERS.match(name):
            left_out[name] = "a trainer's"
        elif name.endswith(_OTHER_WEIGHTS + _OTHER_INDEXES) and name[0] != ".":
            left_out[name] = "weights in another format"
    return WeightFiles(files, index, left_out)


def _chosen(
    source: Source, listed: Mapping[str, File], weights: Mapping[str, File], config: Mapping[str, Any]
) -> tuple[tuple[File, ...], Path | None, str]:
    """Return the files, their index, and why none of the others is taken."""
    folder, named = source.path, config.get("transformers_weights")
    if isinstance(named, str):
        if _is_plain(named) and named.endswith(".safetensors") and named in listed:
            return (listed[named],), None, f"not loaded, since config.json names {named}"
        if _is_plain(named) and named.endswith(".safetensors.index.json") and (folder / named).is_file():
            return _indexed(folder / named, listed), folder / named, f"not loaded, since {named} does not name it"
        raise CheckpointError(
            f"{folder / 'config.json'}: `transformers_weights` names {named!r}, no safetensors file or index here; "
            "fetch the checkpoint again, or take the line out"
        )
    if SINGLE_NAME in weights:
        return (weights[SINGLE_NAME],), None, f"not loaded, since {SINGLE_NAME} is there"
    if INDEX_NAME in listed:
        index = folder / INDEX_NAME
        return _indexed(index, listed), index, f"not loaded, since {INDEX_NAME} does not name it"
    return _without_index(source, listed, weights), None, "not loaded: it is not part of the set of shards"


def _without_index(source: Source, listed: Mapping[str, File], weights: Mapping[str, File]) -> tuple[File, ...]:
    sets: dict[tuple[str, int], set[int]] = {}
    for name in weights:
        match = _SHARD.match(name)
        if match:
            sets.setdefault((match["stem"], int(match["count"])), set()).add(int(match["number"]))
    if len(sets) == 1:
        ((stem, count), numbers) = next(iter(sets.items()))
        missing = sorted(set(range(1, count + 1)) - numbers)
        if missing:
            raise CheckpointError(
                f"{source.name}: shard {missing[0]} of {count} is missing "
                f"({stem}-{missing[0]:05d}-of-{count:05d}.safetensors); fetch the checkpoint again"
            )
        return tuple(file for name, file in weights.items() if _SHARD.match(name))
    if len(weights) == 1:
        return tuple(weights.values())
    if weights:
        raise CheckpointError(
            f"{source.name}: several safetensors files and no {INDEX_NAME} ({shorten(list(weights))}); name one of them"
        )
    _refuse_other_formats(source, listed)
    if (source.path / "surgeon.json").is_file():  # what a push without weights leaves out
        address = source.name if source.name.startswith("hf://") or source.revision is None else f"hf://{source.name}"
        raise CheckpointError(
            f"{source.name}: holds a variant without its weights; `surgeon apply {address}` makes them"
        )
    raise CheckpointError(f"{source.name}: no safetensors file in this {'repository' if source.revision else 'folder'}")


def _refuse_other_formats(source: Source, listed: Mapping[str, File]) -> None:
    """Refuse a folder that holds weights, but none in safetensors; the remedy is one that transformers has."""
    names = [name for name in sorted(listed) if name[0] != "."]
    pickled = [name for name in names if re.fullmatch(r"pytorch_model.*\.bin", name)]
    packed = [name for name in names if name.endswith(".gguf")]
    other = [name for name in names if name.endswith(_OTHER_WEIGHTS)]
    remedy = "name a folder that holds safetensors"
    if pickled:
        remedy = "load it in transformers and `save_pretrained` it first"
    elif packed:
        remedy = f"load it in transformers with `gguf_file={packed[0]!r}` and `save_pretrained` it first"
    for name in (*pickled[:1], *packed[:1], *other[:1]):
        raise CheckpointError(f"{source.name}: holds {name} but no safetensors; {remedy}")


def _refuse_adapter(source: Source, listed: Mapping[str, File], config: Mapping[str, Any]) -> None:
    """Refuse an adapter, which transformers adds to the model beside it or to the one that it names."""
    if ADAPTER_CONFIG not in listed:
        return
    merge = "merge it with peft (`merge_and_unload`), `save_pretrained` the model, and name that folder"
    if config and any(name.startswith("model") and name.endswith(".safetensors") for name in listed):
        raise CheckpointError(
            f"{source.name}: {ADAPTER_CONFIG} makes an adapter part of this model, which transformers adds when it "
            f"loads it; {merge}; or take {ADAPTER_CONFIG} out of the folder, to work on the model without it"
        )
    try:
        base = read_object(source.path / ADAPTER_CONFIG).get("base_model_name_or_path")
    except (NotPlain, OSError):
        base = None
    of = f" of {base}" if isinstance(base, str) and base else ""
    raise CheckpointError(f"{source.name}: holds an adapter{of} and no model ({ADAPTER_CONFIG}); {merge}")


def _indexed(index: Path, listed: Mapping[str, File]) -> tuple[File, ...]:
    names = sorted(set(weight_map(index).values()))
    if not names:
        raise CheckpointError(f"{index}: names no tensor, so no weights would be loaded; fetch the file again")
    for name in names:
        if not _is_plain(name):
            raise CheckpointError(f"{index}: shard name {name!r} is not a plain file name")
        if name not in listed:
            raise CheckpointError(f"{index}: names the shard {name}, which is missing; fetch the checkpoint again")
    return tuple(listed[name] for name in names)


def _is_plain(name: str) -> bool:
    return Path(name).name == name and "\0" not in name


def weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor, by an index."""
    try:
        return as_texts(read_object(index).get("weight_map"), "its weight_map")
    except NotPlain as error:
        raise CheckpointError(f"{index}: not a safetensors index ({error}); fetch the file again") from None


def _held(file: File) -> str:
    """Say what a file holds that is not read otherwise; of one on the Hub nothing."""
    names = _names_in(file)
    return f"; it holds {shorten(names)}" if names else ""


def _names_in(file: File) -> list[str]:
    if isinstance(file, RemoteFile):
        return []
    try:
        return list(read_header(file).tensors)
    except CheckpointError:  # it is not used, so what is wrong with it is nobody's concern
        return []


def check_index(weights: WeightFiles, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> list[str]:
    """Hold an index against the headers of its shards, and of what it leaves out; say where it is wrong without harm.

    Raises:
        CheckpointError: a tensor is not there that the index promises, or that the model needs.
    """
    index = weights.index
    if index is None:
        return []
    said, name = weight_map(index), index.name
    for tensor, file in said.items():
        if tensor not in tensors:
            raise CheckpointError(f"{index}: names tensor '{tensor}' in {file}, which does not hold it")
    for file in weights.left_out:
        beside = file.endswith(".safetensors") and file[0] != "." and (index.parent / file).is_file()
        needed = _needed(_names_in(index.parent / file), tensors, config) if beside else []
        if needed:
            raise CheckpointError(
                f"{index}: does not name {file}, which holds {shorten(needed)}: the model would be loaded "
                "without; fetch the index again, or take that file out of the folder"
            )
    unnamed = [tensor for tensor in tensors if tensor not in said]
    moved = [tensor for tensor, file in said.items() if tensors[tensor].path.name != file]
    notes = []
    if unnamed:
        where = sorted({tensors[tensor].path.name for tensor in unnamed})
        notes.append(
            f"{name} does not name {shorten(unnamed)} in {shorten(where)}; taken all the same, as by transformers"
        )
    if moved:
        where = sorted({tensors[tensor].path.name for tensor in moved})
        notes.append(f"{name} places {shorten(moved)} elsewhere than in {shorten(where)}, where the headers have it")
    return notes


def _needed(names: Iterable[str], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> list[str]:
    """Return those names that the model must have, by its config and by what else it has."""
    layers = whole_number(of_text(config), *LAYERS)
    kinds = {pattern(name) for name in tensors}
    weights = [name for name in tensors if name.endswith(".weight")]
    has_embedding = any(map(is_embedding, weights))
    has_head = any(map(is_head, weights)) or ties_head(config)

    def must_be(name: str) -> bool:
        layer = LAYER.search(name)
        if layer is not None:  # layers beyond the config's number are heads for further tokens
            return int(layer[1]) < layers and pattern(name) in kinds
        missing = (not has_embedding and is_embedding(name)) or (not has_head and is_head(name))
        return name in _FINAL_NORMS or (missing and name.endswith(".weight"))

    return [name for name in names if name not in tensors and must_be(name)]


def index_bytes(files: Mapping[str, Iterable[TensorInfo]]) -> bytes:
    """Return the content of an index of weight files, by the tensors of each."""
    size = sum(info.nbytes for tensors in files.values() for info in tensors)
    names = {info.name: file for file, tensors in files.items() for info in tensors}
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()  # escaped: names of files need not be UTF-8 text
