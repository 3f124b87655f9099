"""Scratch folders in the cache: each belongs to whoever holds its lock, and what nobody holds any more is reclaimed.

Scores and hidden states in the making take gigabytes, and a killed process cannot remove its own. One that noted how
far it came, so that the same command goes on from there, keeps its folder for some days.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon import inside
from surgeon.checkpoint.sources import cache_folder
from surgeon.checkpoint.storage import remove_abandoned
from surgeon.locks import held, is_still, lock

LOCK = "lock"
PROGRESS = "progress.json"  # in a folder with which the same command goes on
_KEPT = 7 * 24 * 3600.0  # seconds from the last note in it; long enough for a weekend and a queue


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
    return cache_folder() / "scratch"


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
