"""What every tensor of a checkpoint is: by names that are plain, by what is kept, or by the model itself.

Families are plain whose names tell layer, role and axis of a tensor, so that no model need be built; a checkpoint is
only if every one of its tensors has a name that its family is known to have. Tests hold it against the model itself.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.config import LAYERS, whole_number
from surgeon.checkpoint.naming import Place, place
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.errors import CheckpointError

_VERSION = 3  # raise it when the same model would be read otherwise
_LONGEST = 1 << 28  # bytes of what is kept: a million names; what is longer is not ours
_REMEMBERED = 8  # anatomies of one process: a base, its donors and what it is compared with

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


@dataclass(frozen=True)
class Anatomy:
    """What every tensor on disk is, by its name; `unbuilt` says why the model could not be asked, if so."""

    places: Mapping[str, Place]
    unbuilt: str | None = None


_known: dict[str, Anatomy] = {}
_latest: list[tuple[Checkpoint, str]] = []  # asked for last, and its key: of many tensors even that takes long


def anatomy_of(checkpoint: Checkpoint) -> Anatomy:
    """Return what the tensors of a checkpoint are.

    Where transformers cannot build the model, or is not installed, names tell what they can.
    """
    key = key_of(checkpoint)
    if key not in _known:
        while len(_known) >= _REMEMBERED:
            _known.pop(next(iter(_known)))
        _known[key] = _read(checkpoint, key)
    return _known[key]


def _read(checkpoint: Checkpoint, key: str) -> Anatomy:
    plain = plain_places(checkpoint)
    if plain is not None:
        return Anatomy(plain)
    if not checkpoint.config.get("model_type"):
        return Anatomy(_by_names(checkpoint), f"{checkpoint.where}: no config.json that names a model type")
    path = path_of("anatomy", key, ".json")
    known = _recall(path, checkpoint)
    if known is not None:
        return Anatomy(known)
    try:
        from surgeon.anatomy.reading import read_places

        places = read_places(checkpoint)
    except ImportError as error:
        return Anatomy(_by_names(checkpoint), f"transformers cannot be asked ({error})")
    except CheckpointError as error:
        return Anatomy(_by_names(checkpoint), str(error))
    _keep(path, places)
    return Anatomy(places)


def plain_places(checkpoint: Checkpoint) -> dict[str, Place] | None:
    """Return what every tensor is if the names alone tell it; None if the model has to be asked."""
    form = PLAIN.get(str(checkpoint.config.get("model_type")))
    layers = whole_number(checkpoint.config, *LAYERS)
    if form is None:
        return None
    for name in checkpoint.tensors:
        match = re.fullmatch(form, name)
        if match is None or (match[1] is not None and int(match[1]) >= layers):
            return None
    return _by_names(checkpoint)


def _by_names(checkpoint: Checkpoint) -> dict[str, Place]:
    return {name: place(info, checkpoint.config) for name, info in checkpoint.tensors.items()}


def key_of(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of what an anatomy depends on: config, headers, transformers, and how it is read."""
    key = _latest[0][1] if _latest and _latest[0][0] is checkpoint else _key(checkpoint)
    _latest[:] = [(checkpoint, key)]
    return key


def _key(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    for part in (_VERSION, _transformers(), json.dumps(dict(checkpoint.config), sort_keys=True, allow_nan=True)):
        digest.update(f"{part}\0".encode())
    for name in sorted(checkpoint.tensors):
        info = checkpoint.tensors[name]
        digest.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
    return digest.hexdigest()


@cache
def _transformers() -> str:
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _keep(path: Path, places: Mapping[str, Place]) -> None:
    """Keep an anatomy as a list of distinct places, and each tensor's number in it. Not flushed: it is made again."""
    distinct = list(dict.fromkeys(places.values()))
    numbers = {where: number for number, where in enumerate(distinct)}
    data: dict[str, Any] = {
        "places": [astuple(where) for where in distinct],
        "tensors": {name: numbers[where] for name, where in places.items()},
    }
    remember(path, data)


def _recall(path: Path, checkpoint: Checkpoint) -> dict[str, Place] | None:
    """Return what is kept; None if that is nothing, or damaged."""
    try:
        data = recall(path, _LONGEST)
        if data is None:
            return None
        distinct = [Place(*fields) for fields in data["places"]]
        places = {name: distinct[number] for name, number in data["tensors"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return places if places.keys() == checkpoint.tensors.keys() else None
