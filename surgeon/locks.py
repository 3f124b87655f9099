"""Locks between processes, on open files; the system gives them up when a process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def lock(descriptor: int) -> bool:
    """Lock an open file, for as long as it stays open; False if somebody else has.

    Raises:
        OSError: the file system gives no locks.
    """
    import fcntl  # not on every platform

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold the lock on a file that is there; yields False if somebody else has it, or nobody can tell."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        got = False
        with suppress(OSError):
            got = lock(descriptor)
        yield got and is_still(descriptor, path)
    finally:
        os.close(descriptor)


def is_still(descriptor: int, path: Path) -> bool:
    """True if a path still leads to the file that was opened by it, and that nobody removed meanwhile."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))
