"""SHA-256 of files and tensors, remembered per file as long as its size, time and inode stay the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from surgeon.checkpoint import Checkpoint
from surgeon.sources import cache_folder
from surgeon.storage import Header, map_bytes, replacing


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def file_hashes(paths: Iterable[Path], jobs: int) -> dict[Path, str]:
    """Hash files side by side; hashlib releases the interpreter lock."""
    paths = list(paths)
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(paths, pool.map(file_hash, paths), strict=True))


def source_file_hashes(checkpoint: Checkpoint, jobs: int) -> dict[Path, str]:
    """Return the SHA-256 of each weight file of a source, from memory where the file has not changed."""
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(
            lambda header: _remembered(header, "file", lambda: {"": file_hash(header.path)}), checkpoint.headers
        )
        return {header.path: result[""] for header, result in zip(checkpoint.headers, results, strict=True)}


def tensor_hashes(checkpoint: Checkpoint, jobs: int, names: Collection[str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of each tensor's bytes (of `names` at least), from memory where the file has not changed."""
    with ThreadPoolExecutor(jobs) as pool:
        parts = pool.map(
            lambda header: _remembered(header, "tensors", lambda: _hash_tensors(header)), checkpoint.headers
        )
        return {name: digest for part in parts for name, digest in part.items()}


def content_hash(checkpoint: Checkpoint, jobs: int) -> str:
    """Return one hash over names, dtypes, shapes and bytes of all tensors; sharding does not change it."""
    hashes = tensor_hashes(checkpoint, jobs)
    lines = [
        f"{name} {info.dtype} {list(info.shape)} {hashes[name]}" for name, info in sorted(checkpoint.tensors.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hash_tensors(header: Header) -> dict[str, str]:
    data = map_bytes(header.path)
    return {
        name: hashlib.sha256(data[info.offset : info.offset + info.nbytes].data).hexdigest()
        for name, info in header.tensors.items()
    }


def _remembered(header: Header, kind: str, compute: Callable[[], dict[str, str]]) -> dict[str, str]:
    real = header.path.resolve()
    stat = real.stat()
    identity = f"{kind} {real} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    memory = cache_folder() / "hashes" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    except (OSError, ValueError):
        pass
    result = compute()
    with replacing(memory) as staged:
        staged.write_text(json.dumps(result), encoding="utf-8")
    return result
