"""Files of the Hub, fetched into its cache, and each held against the hash that the Hub named for it.

The client library compares sizes only. The cache calls a file after its hash (SHA-256, or git's own for small ones), so
what came out otherwise is known by its name; it is taken out again, or it would be believed from then on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from surgeon.checkpoint.hashing import file_hash
from surgeon.errors import EnvironmentFailure

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT = re.compile(r"[0-9a-f]{40}")


def fetch_file(repository: str, name: str, revision: str | None, kind: str = "model") -> Path:
    """Return the path of one file in the Hub's cache, fetched if it is not there.

    Raises:
        EnvironmentFailure: it is not the file that the Hub named.
        Exception: the client library's own errors; see `hub_errors`.
    """
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(repository, name, revision=revision, repo_type=kind))
    _check(path.resolve(), f"hf://{repository}/{name}")
    return path


def fetch_snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder of a revision in the Hub's cache, with the files that match, fetched if they are not there.

    Raises:
        EnvironmentFailure: one that was fetched is not the file that the Hub named.
        Exception: the client library's own errors; see `hub_errors`.
    """
    from huggingface_hub import constants, snapshot_download

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    before = {path.name for path in blobs.glob("*")}
    folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    names = {path.resolve(): path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink()}
    for path in sorted(blobs.glob("*")):
        if path.name not in before:
            _check(path, f"hf://{repository}/{names.get(path.resolve(), path.name)}")
    return folder


def refuse_other(path: Path, listed: str | None, where: str) -> None:
    """Refuse a fetched file that is not the one of that SHA-256 in the Hub's list of files; None if it lists none.

    Raises:
        EnvironmentFailure: it is another one.
    """
    found = path.resolve().name
    if listed is not None and _SHA256.fullmatch(found) and found != listed:
        _refuse(path.resolve(), where)


def _check(blob: Path, where: str) -> None:
    """Hold a file in the cache against its own name, as far as that is a hash."""
    if _SHA256.fullmatch(blob.name):
        same = file_hash(blob) == blob.name
    elif _GIT.fullmatch(blob.name):
        same = _git_hash(blob) == blob.name
    else:
        return
    if not same:
        _refuse(blob, where)


def _refuse(blob: Path, where: str) -> None:
    with suppress(OSError):
        blob.unlink()
    raise EnvironmentFailure(
        f"{where}: what came is not the file that the Hub named (its hash is another); it was taken out of the Hub's "
        "cache again, run the same command again"
    )


def _git_hash(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
