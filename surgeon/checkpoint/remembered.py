"""Hashes of files, remembered as long as the file's stamp stays the same: size, times and inode.

A weight file is read once for its own hash and those of all its tensors. What is remembered carries a checksum;
damaged, it is made again. A bit that rots below the file system leaves the stamp as it was, so what is verified,
reused or published is read (`read_hash`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from surgeon.checkpoint.hashing import CHANGED, Stamp, file_hash, file_stamp, is_settled, sha256
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.storage import Header, on_disk
from surgeon.checkpoint.store import place, recall, remember
from surgeon.errors import CheckpointError

_TENSOR = "tensor "  # before a tensor's name, where hashes are kept
_LARGE = 1 << 20  # bytes; a smaller file is hashed in a millisecond


@dataclass(frozen=True)
class FileHashes:
    """The SHA-256 of a weight file, and of the bytes of each of its tensors."""

    file: str
    tensors: Mapping[str, str]


class FileDigest:
    """Hashes a weight file, and each of its tensors, from bytes that pass by once, first to last."""

    def __init__(self, header: Header) -> None:
        self._header, self._position = header, 0
        self._file = hashlib.sha256()
        self._waiting = sorted(header.tensors.values(), key=lambda info: (info.offset, info.nbytes), reverse=True)
        self._tensors = {name: hashlib.sha256() for name in header.tensors}

    def update(self, piece: memoryview) -> None:
        """Take the file's next bytes."""
        self._file.update(piece)
        start, stop = self._position, self._position + len(piece)
        while self._waiting and self._waiting[-1].offset < stop:
            info = self._waiting[-1]
            end = info.offset + info.nbytes
            self._tensors[info.name].update(piece[max(info.offset - start, 0) : max(min(end, stop) - start, 0)])
            if end > stop:
                break
            self._waiting.pop()
        self._position = stop

    def finish(self) -> FileHashes:
        """Return the hashes, and remember them for this very file."""
        found = FileHashes(self._file.hexdigest(), {name: d.hexdigest() for name, d in self._tensors.items()})
        if self._header.stamp is not None and self._header.settled:
            _remember(self._header.stamp, {"file": found.file} | _keys(found.tensors))
        return found


def known_hashes(header: Header) -> FileHashes | None:
    """Return the hashes of a weight file on this disk if they are remembered; it is not read."""
    known = _recall(header.stamp) if header.stamp is not None else {}
    tensors = {name: known[_TENSOR + name] for name in header.tensors if _TENSOR + name in known}
    return FileHashes(known["file"], tensors) if "file" in known and len(tensors) == len(header.tensors) else None


def hashes_of(header: Header) -> FileHashes:
    """Return the hashes of a weight file on this disk, remembered or made in one pass.

    Raises:
        CheckpointError: the file became shorter.
    """
    known = known_hashes(header)
    if known is not None:
        return known
    digest, position = FileDigest(header), 0
    with on_disk(header.path).open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(memoryview(piece))
            position += len(piece)
    if position != header.file_size:
        raise CheckpointError(f"{header.path}: {CHANGED}")
    return digest.finish()


def stored_hash(path: Path) -> str:
    """Return the SHA-256 of any file; that of a large one is recalled as long as its stamp stays the same.

    A stamp tells who wrote to the file, not whether the disk still has what was written: for that see `read_hash`.
    """
    stamp = file_stamp(path.stat())
    known = _recall(stamp) if stamp[2] >= _LARGE else {}
    return known["file"] if "file" in known else read_hash(path)


def read_hash(path: Path) -> str:
    """Return the SHA-256 of any file as it is read now, whatever is remembered of it, and remember that."""
    stamp = file_stamp(path.stat())
    settled = is_settled(stamp)
    digest = file_hash(path)
    if settled:
        remember_file(stamp, digest)
    return digest


def remember_file(stamp: Stamp, digest: str) -> None:
    """Remember the SHA-256 of a large file; a small one is hashed faster than looked up."""
    if stamp[2] >= _LARGE and is_settled(stamp):
        _remember(stamp, {"file": digest})


def remote_hashes(file: RemoteFile, names: Sequence[str], compute: Callable[[str], str]) -> dict[str, str]:
    """Return the hash of each named tensor of a file on the Hub, computing those not remembered at its commit."""
    key = f"{file.repository} {file.commit} {file.name}"
    known = _recall(key)
    missing = {name: compute(name) for name in names if _TENSOR + name not in known}
    if missing:
        _remember(key, _keys(missing))
    return {name: missing[name] if name in missing else known[_TENSOR + name] for name in names}


def _keys(hashes: Mapping[str, str]) -> dict[str, str]:
    return {_TENSOR + name: digest for name, digest in hashes.items()}


def _place(stamp: Stamp | str) -> Path:
    return place("hashes", sha256(str(stamp).encode()), ".json")


def _recall(stamp: Stamp | str) -> dict[str, str]:
    """Return what is remembered of a file; {} if that is nothing, or damaged."""
    return recall(_place(stamp)) or {}


def _remember(stamp: Stamp | str, hashes: Mapping[str, str]) -> None:
    """Remember hashes of a file, beside what is known of it."""
    remember(_place(stamp), _recall(stamp) | dict(hashes))
