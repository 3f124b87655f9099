"""What every tensor of a checkpoint is: by names that are plain, by what is kept, or by the model itself."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from surgeon.anatomy.plain import plain_places
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import Place, place
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.errors import CheckpointError

_VERSION = 3  # raise it when the same model would be read otherwise
_LONGEST = 1 << 28  # bytes of what is kept: a million names; what is longer is not ours
_REMEMBERED = 8  # anatomies of one process: a base, its donors and what it is compared with


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
    kept = path_of("anatomy", key, ".json")
    known = _recall(kept, checkpoint)
    if known is not None:
        return Anatomy(known)
    try:
        from surgeon.anatomy.reading import read_places

        places = read_places(checkpoint)
    except ImportError as error:
        return Anatomy(_by_names(checkpoint), f"transformers cannot be asked ({error})")
    except CheckpointError as error:
        return Anatomy(_by_names(checkpoint), str(error))
    _keep(kept, places)
    return Anatomy(places)


def _by_names(checkpoint: Checkpoint) -> dict[str, Place]:
    return {name: place(info, checkpoint.config) for name, info in checkpoint.tensors.items()}


def key_of(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of what an anatomy depends on: config, headers, transformers, and how it is read."""
    key = _latest[0][1] if _latest and _latest[0][0] is checkpoint else _key(checkpoint)
    _latest[:] = [(checkpoint, key)]
    return key


def _key(checkpoint: Checkpoint) -> str:
    made = hashlib.sha256()
    for part in (_VERSION, _transformers(), json.dumps(dict(checkpoint.config), sort_keys=True, allow_nan=True)):
        made.update(f"{part}\0".encode())
    for name in sorted(checkpoint.tensors):
        info = checkpoint.tensors[name]
        made.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
    return made.hexdigest()


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
        found = recall(path, _LONGEST)
        if found is None:
            return None
        distinct = [Place(*fields) for fields in found["places"]]
        places = {name: distinct[number] for name, number in found["tensors"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return places if places.keys() == checkpoint.tensors.keys() else None
