"""The read side: a checkpoint's headers now, its tensors on demand.

A checkpoint is its weight files (`weight_files.py` says which) together with its `config.json`. Opening reads headers
only and checks them against each other and the index, so that a missing, truncated or doubled shard is found before
anything else happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.coded import Coded, Indices, logical_tensors, parts_of
from surgeon.checkpoint.config import read_config
from surgeon.checkpoint.hashing import CHANGED
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.sources import Source, download, locate
from surgeon.checkpoint.storage import (
    File,
    Header,
    MapMode,
    TensorInfo,
    map_bytes,
    on_disk,
    read_entries,
    read_header,
    read_span,
    view,
)
from surgeon.checkpoint.ties import tied_groups
from surgeon.checkpoint.weight_files import check_index, find_weights
from surgeon.errors import CheckpointError, did_you_mean
from surgeon.notebook import table

if TYPE_CHECKING:
    import torch

_FETCHED_BYTES = 1 << 26  # of tensors on the Hub, kept in memory; a larger one is kept alone
_HEADERS_AT_ONCE = 8  # requests for headers that wait for the Hub side by side, as many as its own client makes
_PIECE_BYTES = 1 << 22  # compared at a time; the first difference ends it


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A checkpoint whose headers have been read and agree; see `Checkpoint.open`.

    `tensors` are the logical ones by name, those of the unquantized model; where nothing is quantized they are the
    stored ones. `left_out` are weight files beside those that are read, each with why it is not. `notes` say where an
    index and headers differ without harm. Variants of one that is `written_plain` are dequantized.
    Of one on the Hub a tensor's bytes are fetched when it is asked for, and only its own; the last few are kept.
    """

    source: Source
    headers: tuple[Header, ...]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    index: Path | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    written_plain: bool = False
    _maps: dict[tuple[Path, MapMode], NDArray[np.uint8]] = field(default_factory=dict, repr=False, compare=False)
    _fetched: dict[tuple[str, str], NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, source: str | Path | Source) -> Checkpoint:
        """Open a folder, a file, `builtin:NAME`, `hf://org/name@revision` or `org/name`.

        Of a model on the Hub only headers are fetched, by range requests; see also `downloaded`.

        Raises:
            CheckpointError: files are missing, damaged, or contradict each other.
            InputError: the Hub refuses them.
            EnvironmentFailure: the Hub cannot be reached.
        """
        if not isinstance(source, Source):
            source = locate(str(source))
        config = read_config(source.folder)
        weights = find_weights(source, config)
        with ThreadPoolExecutor(_HEADERS_AT_ONCE if source.remote else 1) as pool:
            headers = tuple(pool.map(read_header, weights.files))
        stored: dict[str, TensorInfo] = {}
        for header in headers:
            for name, info in header.tensors.items():
                if name in stored:
                    raise CheckpointError(
                        f"tensor '{name}' is in both {stored[name].path} and {info.path}; keep it in one of them"
                    )
                stored[name] = info
        notes = check_index(weights, stored, config)
        tensors = logical_tensors(config, source.folder, stored)
        return cls(source, headers, tensors, config, weights.index, weights.left_out, tuple(notes))

    def __repr__(self) -> str:
        entries = sum(info.numel for info in self.tensors.values())
        return (
            f"Checkpoint({self.source.name}: {self.config.get('model_type', 'no config')}, {entries:,} parameters in "
            f"{len(self.tensors)} tensors, {len(self.headers)} file(s), {self.data_bytes / 1e6:,.3g} MB)"
        )

    def _repr_html_(self) -> str:
        """Show the checkpoint in a notebook: how many tensors and parameters there are of each dtype."""
        rows = []
        for dtype in dict.fromkeys(info.dtype for info in self.tensors.values()):
            sizes = [info.numel for info in self.tensors.values() if info.dtype == dtype]
            rows.append((dtype, f"{len(sizes):,}", f"{sum(sizes):,}"))
        return table(repr(self), ["dtype", "tensors", "parameters"], rows)

    @property
    def folder(self) -> Path:
        """The folder that holds the files, or will when they have been downloaded."""
        return self.source.folder

    @property
    def where(self) -> str:
        """The folder, or the address on the Hub, for messages."""
        return self.source.pinned if self.source.revision is not None else str(self.folder)

    @property
    def pinned(self) -> str:
        """The name under which these very files are found again, see `Source.pinned`."""
        return self.source.pinned

    @property
    def is_remote(self) -> bool:
        """True if some of the weights are on the Hub only."""
        return any(isinstance(header.path, RemoteFile) for header in self.headers)

    def downloaded(self) -> Checkpoint:
        """Return the checkpoint with all its files on this disk, in the Hub's cache; a broken download is resumed.

        Raises:
            SurgeonError: see `sources.download`.
        """
        return Checkpoint.open(download(self.source)) if self.is_remote else self

    @property
    def data_bytes(self) -> int:
        """Bytes of all weight files together, headers included."""
        return sum(header.file_size for header in self.headers)

    def dequantized(self) -> Checkpoint:
        """Return the same checkpoint, of which edits are made, and variants written, in the logical dtypes."""
        return replace(self, written_plain=True)

    @cached_property
    def stored(self) -> Mapping[str, TensorInfo]:
        """The tensors as the files have them, by name."""
        return {name: info for header in self.headers for name, info in header.tensors.items()}

    def info(self, name: str) -> TensorInfo:
        """Return the header entry of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.where}: no tensor '{name}'{did_you_mean(name, self.tensors)}") from None

    def _mapped(self, file: File, mode: MapMode) -> NDArray[np.uint8]:
        path = on_disk(file)
        size = next(header.file_size for header in self.headers if header.path == file)
        try:
            now = path.stat().st_size
        except FileNotFoundError:
            raise CheckpointError(f"{path}: was removed while it was read; nothing was published") from None
        if now != size:  # reading a mapped byte that is no longer there faults
            raise CheckpointError(f"{path}: {CHANGED}")
        if (path, mode) not in self._maps:
            self._maps[path, mode] = map_bytes(path, mode)
        return self._maps[path, mode]

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only numpy view of the mapped file (bfloat16 and float8 by ml_dtypes).

        Of a file on the Hub the tensor is fetched into memory; a quantized one is decoded into memory.
        """
        info = self.info(name)
        if isinstance(info, Coded):
            return info.array(self)
        if isinstance(info.path, RemoteFile):
            return self._fetch(info)
        return view(self._mapped(info.path, "read"), info)

    def _fetch(self, info: TensorInfo) -> NDArray[Any]:
        values = self._fetched.get((info.name, info.dtype))  # codecs may ask for its bytes
        if values is None:
            if sum(array.nbytes for array in self._fetched.values()) + info.nbytes > _FETCHED_BYTES:
                self._fetched.clear()
            self._fetched[info.name, info.dtype] = values = read_span(info, 0, info.numel).reshape(info.shape)
            values.flags.writeable = False
        return values

    def entries(self, tensor: str | TensorInfo, indices: Indices) -> NDArray[Any]:
        """Return some entries of a tensor, by their sorted flat indices; shape (n,), in memory of their own.

        A tensor is named; codecs hand in the header entry of a stored one.
        """
        info = self.info(tensor) if isinstance(tensor, str) else tensor
        if isinstance(info, Coded):
            return info.codec.entries(info, self, indices)
        if isinstance(info.path, RemoteFile):
            return self._fetch(info).reshape(-1)[indices]
        return read_entries(info, indices)

    def span(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return the entries of a tensor from flat index `start` to before `stop`, in memory of their own."""
        if isinstance(info, Coded):
            return info.codec.decode(info, self, start, stop)
        if isinstance(info.path, RemoteFile):
            return self._fetch(info).reshape(-1)[start:stop].copy()
        return read_span(info, start, stop)

    def private_array(self, name: str) -> NDArray[Any]:
        """Return a writable view whose changes stay in this process's memory and never reach the file."""
        info = self.info(name)
        if isinstance(info, Coded):
            return info.array(self)
        if isinstance(info.path, RemoteFile):
            return self.array(name).copy()
        return view(self._mapped(info.path, "private"), info)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a torch view of `private_array(name)`, in the tensor's own shape and dtype."""
        from surgeon.checkpoint.torch_files import as_tensor

        return as_tensor(self.private_array(name))

    @cached_property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of on-disk names that are one parameter in the model, see `ties.tied_groups`.

        Where both an embedding and its tied head are stored, their bytes are compared; of files on the Hub only, where
        that would be a download, they are taken to be the same.
        """
        return tied_groups(self.tensors, self.config, self._alike)

    def _alike(self, one: str, other: str) -> bool:
        infos = self.tensors[one], self.tensors[other]
        if infos[0].dtype != infos[1].dtype or infos[0].shape != infos[1].shape:
            return False
        pairs = list(zip(*map(parts_of, infos), strict=False))
        if any(isinstance(info.path, RemoteFile) for pair in pairs for info in pair):
            return True
        return len({len(parts_of(info)) for info in infos}) == 1 and all(self._same_bytes(*pair) for pair in pairs)

    def _same_bytes(self, *infos: TensorInfo) -> bool:
        left, right = (self._mapped(info.path, "read")[info.offset : info.offset + info.nbytes] for info in infos)
        pieces = range(0, max(left.size, right.size), _PIECE_BYTES)
        return all(np.array_equal(left[at : at + _PIECE_BYTES], right[at : at + _PIECE_BYTES]) for at in pieces)
