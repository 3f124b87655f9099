"""The read side: a checkpoint's headers now, its tensors on demand.

A checkpoint is one safetensors file, an index with its shards, or a complete shard set without an index,
together with its `config.json`. Opening reads headers only and checks them against each other, so that a
missing, truncated or doubled shard is found before anything else happens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import CheckpointError, did_you_mean
from surgeon.sources import Source, locate
from surgeon.storage import Header, MapMode, TensorInfo, map_bytes, read_header, view

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})\.safetensors$")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been read and agree; see `Checkpoint.open`."""

    source: Source
    headers: tuple[Header, ...]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    index: Path | None
    _maps: dict[tuple[Path, MapMode], NDArray[np.uint8]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, source: str | Path | Source) -> Checkpoint:
        """Open a folder, a file, `builtin:NAME`, `hf://org/name@revision` or `org/name`.

        Raises:
            CheckpointError: files are missing, damaged, or contradict each other.
        """
        if not isinstance(source, Source):
            source = locate(str(source))
        folder = source.path if source.path.is_dir() else source.path.parent
        files, index = ([source.path], None) if source.path.is_file() else _shard_files(folder)
        headers = tuple(read_header(file) for file in files)
        tensors: dict[str, TensorInfo] = {}
        for header in headers:
            for name, info in header.tensors.items():
                if name in tensors:
                    raise CheckpointError(f"tensor '{name}' is in both {tensors[name].path} and {info.path}")
                tensors[name] = info
        if index is not None:
            _check_index(index, tensors)
        return cls(source, headers, tensors, _read_config(folder), index)

    @property
    def folder(self) -> Path:
        """The folder that holds the files."""
        return self.headers[0].path.parent

    @property
    def data_bytes(self) -> int:
        """Bytes of all weight files together, headers included."""
        return sum(header.file_size for header in self.headers)

    def info(self, name: str) -> TensorInfo:
        """Return the header entry of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.folder}: no tensor '{name}'{did_you_mean(name, self.tensors)}") from None

    def _mapped(self, path: Path, mode: MapMode) -> NDArray[np.uint8]:
        if (path, mode) not in self._maps:
            self._maps[path, mode] = map_bytes(path, mode)
        return self._maps[path, mode]

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only numpy view of the mapped file (bfloat16 and float8 by ml_dtypes)."""
        info = self.info(name)
        return view(self._mapped(info.path, "read"), info)

    def private_array(self, name: str) -> NDArray[Any]:
        """Return a writable view whose changes stay in this process's memory and never reach the file."""
        info = self.info(name)
        return view(self._mapped(info.path, "private"), info)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a torch view of `private_array(name)`, in the tensor's own shape and dtype."""
        from surgeon.tensors import as_tensor

        return as_tensor(self.private_array(name))

    @cached_property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of on-disk names that are one parameter in the model.

        A model whose config ties its embeddings may store the output head as well; then both copies are
        named here. A tied head that is not stored yields a group of one: the embedding alone.
        """
        embeddings = [name for name in self.tensors if name.endswith(_EMBEDDINGS) and "position" not in name]
        heads = [name for name in self.tensors if name in _HEADS]
        text = self.config.get("text_config") or {}
        tied = self.config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
        if tied is None:
            tied = not heads  # the default differs between families; a head that is not stored must be tied
        return (tuple(embeddings + heads),) if tied and embeddings else ()


def _shard_files(folder: Path) -> tuple[list[Path], Path | None]:
    index = folder / INDEX_NAME
    if index.is_file():
        return _indexed_files(index), index
    if (folder / SINGLE_NAME).is_file():
        return [folder / SINGLE_NAME], None
    found = sorted(folder.glob("*.safetensors"))
    sets: dict[tuple[str, int], set[int]] = {}
    for path in found:
        match = _SHARD.match(path.name)
        if match:
            sets.setdefault((match["stem"], int(match["count"])), set()).add(int(match["number"]))
    if len(sets) == 1:
        ((stem, count), numbers) = next(iter(sets.items()))
        missing = sorted(set(range(1, count + 1)) - numbers)
        if missing:
            raise CheckpointError(
                f"{folder}: shard {missing[0]} of {count} is missing "
                f"({stem}-{missing[0]:05d}-of-{count:05d}.safetensors); fetch the checkpoint again"
            )
        return [path for path in found if _SHARD.match(path.name)], None
    if len(found) == 1:
        return found, None
    if found:
        names = ", ".join(path.name for path in found[:4])
        raise CheckpointError(f"{folder}: several safetensors files and no {INDEX_NAME} ({names}); name one of them")
    other = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in sorted(folder.glob(pattern))]
    if other:
        raise CheckpointError(
            f"{folder}: holds {other[0]} but no safetensors; load it in transformers and `save_pretrained` it first"
        )
    raise CheckpointError(f"{folder}: no safetensors file in this folder")


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not a safetensors index ({type(error).__name__}: {error})") from None
    for name in sorted(names):
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: shard name {name!r} is not a plain file name")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: names the shard {name}, which is missing; fetch the checkpoint again")
    return [index.parent / name for name in sorted(names)]


def _check_index(index: Path, tensors: Mapping[str, TensorInfo]) -> None:
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for name, file in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{index}: names tensor '{name}' in {file}, which does not hold it")
        if tensors[name].path.name != file:
            raise CheckpointError(f"{index}: places tensor '{name}' in {file}; it is in {tensors[name].path.name}")
    for name, info in tensors.items():
        if name not in weight_map:
            raise CheckpointError(f"{info.path}: holds tensor '{name}', which {index.name} does not name")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return config
