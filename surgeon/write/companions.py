"""Copying what travels with a checkpoint's weights."""

from __future__ import annotations

import os
from pathlib import Path

from surgeon import inside
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import companions
from surgeon.checkpoint.hashing import file_stamp, sha256
from surgeon.write.shards import Copied, copy_small


def copy_companions(checkpoint: Checkpoint, target: Path) -> dict[str, Copied]:
    """Copy the companion files; returns what was copied, by path in the variant."""
    copied, found = {}, companions(checkpoint)
    for relative in found.kept:
        copied[relative.as_posix()] = copy_small(checkpoint.folder / relative, target / relative)
    for name, content in found.made.items():
        with inside.create(target / name) as file:
            file.write(content)
            copied[name] = Copied(sha256(content), file_stamp(os.fstat(file.fileno())))
    return copied
