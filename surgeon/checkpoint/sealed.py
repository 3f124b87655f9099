"""Seals: a kept file is believed only while it has the SHA-256 that was written down beside it."""

from __future__ import annotations

from pathlib import Path

from surgeon.checkpoint.hashing import file_hash
from surgeon.checkpoint.remembered import read_hash
from surgeon.checkpoint.storage import replacing


def seal(path: Path) -> None:
    """Write down the SHA-256 of a finished file, as `NAME.sha256` beside it."""
    with replacing(_seal_of(path)) as part:
        part.write_text(file_hash(path) + "\n", encoding="ascii")


def publish_sealed(made: Path, path: Path) -> None:
    """Give a finished file its name, which it has only with its seal beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(_seal_of(path)) as part:
        part.write_text(file_hash(made) + "\n", encoding="ascii")
    made.replace(path)


def is_sealed(path: Path) -> bool:
    """True if the file is there and is the one that was sealed."""
    try:
        return _seal_of(path).read_text(encoding="ascii").strip() == read_hash(path)
    except (OSError, ValueError):
        return False


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
