"""SHA-256 in hexadecimal, of bytes and of files, and the stamp by which a file's hash is remembered."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

CHANGED = "was changed while it was read, so nothing was published; run again when nothing writes to it"
_PIECE = 1 << 20  # bytes at a time; larger ones leave the processor's cache
_SETTLED = 100_000_000  # nanoseconds; the clocks of file systems tick every few milliseconds
Stamp = tuple[int, int, int, int, int]


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def file_stamp(status: os.stat_result) -> Stamp:
    """Return device, inode, size, and the times of the last change of content and of inode in nanoseconds.

    Whoever overwrites a file and sets its old time again still moves the time of its inode.
    """
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(stamp: Stamp) -> bool:
    """False just after a change: a second one may then bear the same time, so that the stamp tells nothing."""
    return time.time_ns() - max(stamp[3], stamp[4]) > _SETTLED
