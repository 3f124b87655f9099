"""What is kept between runs, by content: one folder, one way to name it, one check, and what lies there.

A *value* is small: its file begins with the SHA-256 of what follows, so that a damaged one is as good as none. Scores
and regions are read as mapped files, so that their SHA-256 stands beside them instead (`fingerprint.seal`). Both are
named by the SHA-256 of all that they depend on, so that nothing that is found was made from anything else.

Beside them lie scratch folders: each belongs to whoever holds its lock, and what nobody holds any more is reclaimed.
Scores and hidden states in the making take gigabytes, and a killed process cannot remove its own. One that noted how
far it came, so that the same command goes on from there, keeps its folder for some days.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon import inside
from surgeon.checkpoint.plain_json import LONGEST, NotPlain, as_object, parse_json
from surgeon.inside import held, is_still, lock, remove_abandoned, replacing

SCRATCH = "scratch"
SHELVES: Mapping[str, str] = {
    "scores": "scores of one language each, float32",
    "regions": "regions that were selected",
    "measures": "what was measured of a model or variant",
    "tokens": "how many tokens texts have",
    "hashes": "SHA-256 of files and tensors",
    "anatomy": "what each tensor of a checkpoint is",
    "prospects": "whether and how models can be run",
    "speeds": "how fast accelerators multiply and copy",
    "page": "drawings of reports",
    SCRATCH: "scores and hidden states in the making",
}
_DIGEST = 32  # bytes of a SHA-256
# What `path_of` names, and its seal: so that clearing removes nothing of anybody else's, wherever the cache is put.
_OURS = re.compile(r"[0-9a-f]{32,64}\.(json|safetensors|region\.safetensors|svg|png)(\.sha256)?")
LOCK = "lock"
PROGRESS = "progress.json"  # in a folder with which the same command goes on
_KEPT = 7 * 24 * 3600.0  # seconds from the last note in it; long enough for a weekend and a queue


def cache_folder() -> Path:
    """Where scores and regions are kept: `$SURGEON_CACHE`, else `surgeon` in the user's cache folder."""
    chosen = os.environ.get("SURGEON_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "surgeon"


def path_of(shelf: str, key: str, suffix: str) -> Path:
    """Return where something is kept under a key, the SHA-256 of all that it depends on."""
    return cache_folder() / shelf / f"{key[:32]}{suffix}"


def value(path: Path) -> bytes | None:
    """Return a value that is kept; None if it is not there, or not as it was written."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[_DIGEST:] if data[:_DIGEST] == hashlib.sha256(data[_DIGEST:]).digest() else None


def keep_value(path: Path, content: bytes) -> None:
    """Keep a value. It is not flushed to the disk: one that a power cut damages is made again."""
    with replacing(path, durable=False) as staged:
        staged.write_bytes(hashlib.sha256(content).digest() + content)


def recall(path: Path, longest: int = LONGEST) -> dict[str, Any] | None:
    """Return a kept object of plain data; None if there is none, or it is damaged, or larger than `longest` bytes."""
    content = value(path)
    if content is None:
        return None
    try:
        return as_object(parse_json(content, longest), "what is kept")
    except NotPlain:
        return None


def remember(path: Path, data: Mapping[str, Any]) -> None:
    """Keep an object of plain data; nan and infinities stay what they are."""
    keep_value(path, json.dumps(data).encode())


@dataclass(frozen=True)
class Shelf:
    """What lies in one folder of the cache: `holds` says what it is, in words; bytes are those of all files."""

    name: str
    holds: str
    files: int
    bytes: int


def contents() -> list[Shelf]:
    """Return what is kept, shelf by shelf."""
    shelves = []
    for name, holds in SHELVES.items():
        sizes = [path.lstat().st_size for path in _files(name)]
        shelves.append(Shelf(name, holds, len(sizes), sum(sizes)))
    return shelves


def clear() -> None:
    """Remove what is kept, and nothing else that lies in the folder; scratch is for `reclaim_cache`.

    A run that is at work meanwhile makes again what it misses.
    """
    for name in SHELVES.keys() - {SCRATCH}:
        for path in _files(name):
            with suppress(OSError):
                inside.remove(path)


def _files(shelf: str) -> list[Path]:
    folder = cache_folder() / shelf
    paths = folder.rglob("*") if shelf == SCRATCH else (p for p in folder.glob("*") if _OURS.fullmatch(p.name))
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


@contextmanager
def own_scratch() -> Iterator[Path]:
    """Yield a new scratch folder that no other process finds; it goes with the block."""
    while (descriptor := _hold(folder := _root() / f"own-{secrets.token_hex(8)}")) is None:
        continue
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def named_scratch(name: str) -> Iterator[Path | None]:
    """Yield the scratch folder of a name, as an earlier process left it; None if another process holds it.

    It is deleted when the block ends well.
    """
    folder = _root() / name
    descriptor = _hold(folder)
    if descriptor is None:
        yield None
        return
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def reclaim_cache(also_unfinished: bool = False) -> None:
    """Remove from the cache what killed processes left there: files that were being written, and scratch folders.

    Those with which a command could go on stay, but for `also_unfinished`; those in use stay always.
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    remove_abandoned(cache_folder())
    for folder in sorted(_root().glob("*")):
        if not inside.is_folder(folder) or (_may_go_on(folder) and not also_unfinished):
            continue
        with suppress(OSError):
            (folder / LOCK).touch()  # of a process killed before it had its lock, or of an older surgeon
        with held(folder / LOCK) as ours:
            if ours:
                shutil.rmtree(folder, ignore_errors=True)


def _root() -> Path:
    return cache_folder() / SCRATCH


def _may_go_on(folder: Path) -> bool:
    try:
        return time.time() - (folder / PROGRESS).stat().st_mtime < _KEPT
    except OSError:
        return False


def _hold(folder: Path) -> int | None:
    """Make a folder if it is missing, and lock it; None if another process has it, or nobody could tell."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # somebody reclaimed it just then
            continue
        try:
            ours = lock(descriptor)
        except OSError:  # no locks on this file system, where nobody reclaims anything either
            ours = folder.name.startswith("own-")
        if ours and is_still(descriptor, folder / LOCK):
            return descriptor
        os.close(descriptor)
        if not ours:
            return None
