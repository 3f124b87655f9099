"""What tells one thing from another: the fingerprint that names what is kept, and hashes of checkpoints.

SHA-256 of weight files and tensors are remembered per file as long as its size, times and inode stay the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.hashing import file_hash, sha256
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.sources import cache_folder
from surgeon.checkpoint.storage import File, Header, TensorInfo, on_disk, read_pieces, replacing

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
        path.name: file_hash(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and (path.name.startswith(_TOKENIZER) or path.suffix in (".model", ".tiktoken"))
    }


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that run a model; neither is imported."""
    return {package: importlib.metadata.version(package) for package in ("torch", "transformers", "tokenizers")}


def file_hashes(paths: Iterable[Path], jobs: int) -> dict[Path, str]:
    """Hash files side by side; hashlib releases the interpreter lock."""
    paths = list(paths)
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(paths, pool.map(file_hash, paths), strict=True))


def source_file_hashes(checkpoint: Checkpoint, jobs: int) -> dict[File, str]:
    """Return the SHA-256 of each weight file of a source, from memory where the file has not changed.

    Of a file that is on the Hub only, the Hub says it.
    """
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(_source_file_hash, checkpoint.headers)
        return {header.path: result for header, result in zip(checkpoint.headers, results, strict=True)}


def _source_file_hash(header: Header) -> str:
    path = header.path
    if isinstance(path, RemoteFile) and path.sha256 is not None:
        return path.sha256
    return _remembered(header, "file", [""], lambda name: file_hash(on_disk(path)))[""]


def tensor_hashes(checkpoint: Checkpoint, jobs: int, names: Collection[str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of the bytes of each tensor, or of `names` only, from memory where the file has not changed.

    Of a file on the Hub only these tensors are fetched.
    """

    def job(header: Header) -> dict[str, str]:
        wanted = [name for name in header.tensors if names is None or name in names]
        return _remembered(header, "tensors", wanted, lambda name: _hash_tensor(header.tensors[name]))

    with ThreadPoolExecutor(jobs) as pool:
        return {name: digest for part in pool.map(job, checkpoint.headers) for name, digest in part.items()}


def content_hash(checkpoint: Checkpoint, jobs: int) -> str:
    """Return one hash over names, dtypes, shapes and bytes of all tensors; sharding does not change it."""
    hashes = tensor_hashes(checkpoint, jobs)
    lines = [
        f"{name} {info.dtype} {list(info.shape)} {hashes[name]}" for name, info in sorted(checkpoint.tensors.items())
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


def _remembered(header: Header, kind: str, names: Collection[str], compute: Callable[[str], str]) -> dict[str, str]:
    """Return a hash for each name, computing and keeping those that are not known of this very file."""
    memory = cache_folder() / "hashes" / f"{sha256(_stamp(kind, header).encode())[:32]}.json"
    known: dict[str, str] = {}
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
        known = found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        pass
    missing = [name for name in names if name not in known]
    if missing:
        known |= {name: compute(name) for name in missing}
        with replacing(memory) as staged:
            staged.write_text(json.dumps(known), encoding="utf-8")
    return {name: known[name] for name in names}


def _stamp(kind: str, header: Header) -> str:
    if isinstance(header.path, RemoteFile):
        return f"{kind} {header.path.repository} {header.path.commit} {header.path.name}"
    real = header.path.resolve()
    stat = real.stat()
    return f"{kind} {real} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
