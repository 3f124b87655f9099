"""SHA-256 of files and tensors, remembered per file as long as its size, time and inode stay the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.sources import cache_folder
from surgeon.checkpoint.storage import File, Header, TensorInfo, on_disk, read_pieces, replacing


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def bytes_hash(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


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
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
    memory = cache_folder() / "hashes" / f"{hashlib.sha256(_stamp(kind, header).encode()).hexdigest()[:32]}.json"
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
    return f"{kind} {real} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
