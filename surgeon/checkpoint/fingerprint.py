"""What tells one thing from another: the fingerprint that names what is kept, and the hashes of checkpoints."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded, StoredFiles, parts_of
from surgeon.checkpoint.hashing import CHANGED, Stamp, file_hash, file_stamp, is_settled, sha256
from surgeon.checkpoint.remembered import hashes_of, read_hash, remote_hashes, stored_hash
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.storage import File, Header, TensorInfo, on_disk, read_pieces
from surgeon.errors import CheckpointError, InputError

# Files that say how text becomes tokens. A chat template is not among them: nothing here applies one.
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens")


@dataclass(frozen=True)
class Fingerprint:
    """All that a kept result depends on; what it does not depend on is left at its default.

    Every cache names its files by `key()`, so that no change of an ingredient finds what was made with another.
    """

    version: int  # of the kept file's format and of the way it is computed
    model: str  # `content_hash` or `identity` of the checkpoint
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json, whole
    tokenizer: Mapping[str, str] = field(default_factory=dict)  # `tokenizer_hashes`
    text: str = ""  # the SHA-256 of the text
    settings: Mapping[str, Any] = field(default_factory=dict)  # plain data: of the recipe, of the arithmetic
    tensors: tuple[str, ...] = ()  # names, in the order that matters
    device: str = ""  # where the model ran
    attention: str = ""  # the attention implementation asked for; the library's choice follows from `libraries`
    libraries: Mapping[str, str] = field(default_factory=dict)  # `library_versions` where the model ran

    def key(self) -> str:
        """Return the SHA-256 of all ingredients, 64 hexadecimal digits."""
        return sha256(json.dumps(asdict(self), sort_keys=True, allow_nan=True).encode())


def tokenizer_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file beside the weights that says how text becomes tokens."""
    return {
        path.name: _hash_of(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and (path.name.startswith(_TOKENIZER) or path.suffix in (".model", ".tiktoken"))
    }


def _hash_of(path: Path) -> str:
    stamp = file_stamp(path.stat())
    return _hash_at(path, stamp) if is_settled(stamp) else file_hash(path)


@lru_cache(maxsize=256)  # a plan asks a dozen times, and a tokenizer may have 30 MB
def _hash_at(path: Path, stamp: Stamp) -> str:
    return file_hash(path)


@cache
def library_versions() -> Mapping[str, str]:
    """Return the versions of the libraries that run a model; neither is imported."""
    return {package: importlib.metadata.version(package) for package in ("torch", "transformers", "tokenizers")}


def file_hashes(paths: Iterable[Path], jobs: int) -> dict[Path, str]:
    """Return the SHA-256 of files, hashed side by side; those of large ones are recalled."""
    return _hashed(stored_hash, paths, jobs)


def _hashed(one: Callable[[Path], str], paths: Iterable[Path], jobs: int) -> dict[Path, str]:
    paths = list(paths)
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(paths, pool.map(one, paths), strict=True))


def damaged(folder: Path, files: Mapping[str, str], jobs: int) -> list[str]:
    """Say of each file below `folder` that is missing, or has not the SHA-256 given for it, what is wrong with it.

    Every byte is read: a disk that gives other bytes than it was given moves no stamp.

    Raises:
        InputError: a path leads out of the folder.
    """
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{folder}: names the file {name!r}, which lies outside of it")
    present = {name: folder / name for name in files if (folder / name).is_file()}
    found = _hashed(read_hash, present.values(), jobs)
    problems = []
    for name, expected in files.items():
        if name not in present:
            problems.append(f"{folder / name}: missing")
        elif found[present[name]] != expected:
            problems.append(
                f"{folder / name}: not the file that was written (its SHA-256 is {found[present[name]][:12]}..., "
                f"and was {expected[:12]}...)"
            )
    return problems


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Refuse a source whose files are no longer those whose headers were read.

    Raises:
        CheckpointError: one was written to, replaced or removed meanwhile.
    """
    for header in checkpoint.headers:
        if header.stamp is not None:
            try:
                now = file_stamp(on_disk(header.path).stat())
            except OSError:
                raise CheckpointError(f"{header.path}: was removed while it was read; nothing was published") from None
            if now != header.stamp:
                raise CheckpointError(f"{header.path}: {CHANGED}")


def source_file_hashes(checkpoint: Checkpoint, jobs: int) -> dict[File, str]:
    """Return the SHA-256 of each weight file of a source, from memory where the file has not changed.

    Of a file that is on the Hub only, the Hub says it.
    """

    def job(header: Header) -> str:
        if isinstance(header.path, RemoteFile) and header.path.sha256 is not None:
            return header.path.sha256
        return hashes_of(header).file

    with ThreadPoolExecutor(jobs) as pool:
        return {h.path: found for h, found in zip(checkpoint.headers, pool.map(job, checkpoint.headers), strict=True)}


def tensor_hashes(checkpoint: Checkpoint, jobs: int, names: Collection[str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of the bytes of each stored tensor, or of logical `names` only, from memory if known.

    That of a quantized tensor is over the hashes of the stored ones that it lies in, in their order. Of a file on the
    Hub only these tensors are fetched.
    """
    wanted = None if names is None else {part.name for name in names for part in parts_of(checkpoint.info(name))}

    def job(header: Header) -> dict[str, str]:
        here = [name for name in header.tensors if wanted is None or name in wanted]
        if not isinstance(header.path, RemoteFile):
            found = hashes_of(header).tensors if here else {}
            return {name: found[name] for name in here}
        return remote_hashes(header.path, here, lambda name: _hash_tensor(header.tensors[name]))

    with ThreadPoolExecutor(jobs) as pool:
        stored = {name: digest for part in pool.map(job, checkpoint.headers) for name, digest in part.items()}
    if names is None:
        return stored
    return {name: _joined([stored[part.name] for part in parts_of(checkpoint.info(name))]) for name in names}


def base_hashes(checkpoint: Checkpoint, jobs: int, names: Collection[str]) -> dict[str, str]:
    """Return the SHA-256 of the values of logical tensors in their dtype, by which patches know their base.

    Those of a quantized tensor are decoded for it, so that a patch fits the dequantized model too.
    """
    infos = [checkpoint.info(name) for name in names]
    coded = [info for info in infos if isinstance(info, Coded)]
    plain = [info.name for info in infos if not isinstance(info, Coded)]
    with ThreadPoolExecutor(jobs) as pool:
        decoded = dict(zip([info.name for info in coded], pool.map(_hash_values, coded), strict=True))
    return {**(tensor_hashes(checkpoint, jobs, plain) if plain else {}), **decoded}


def _joined(hashes: Sequence[str]) -> str:
    return hashes[0] if len(hashes) == 1 else sha256("\n".join(hashes).encode())


def _hash_values(info: Coded) -> str:
    digest = hashlib.sha256()
    for _, piece in info.pieces(StoredFiles()):
        digest.update(piece.view(np.uint8).data)
    return digest.hexdigest()


def content_hash(checkpoint: Checkpoint, jobs: int) -> str:
    """Return one hash over names, dtypes, shapes and bytes of all tensors; sharding does not change it."""
    hashes = tensor_hashes(checkpoint, jobs)
    lines = [
        f"{name} {info.dtype} {list(info.shape)} {hashes[name]}" for name, info in sorted(checkpoint.stored.items())
    ]
    return sha256("\n".join(lines).encode())


def identity(checkpoint: Checkpoint, jobs: int) -> str:
    """Return what tells a checkpoint from all others: its commit if it is from the Hub, else its content hash."""
    return checkpoint.source.pinned if checkpoint.source.revision is not None else content_hash(checkpoint, jobs)


def _hash_tensor(info: TensorInfo) -> str:
    digest = hashlib.sha256()
    for piece in read_pieces(info, 1 << 20):
        digest.update(piece.data)
    return digest.hexdigest()
