"""What tells one thing from another: the fingerprint that names what is kept, and the hashes of files and tensors.

A weight file is read once for its own hash and those of all its tensors. They are remembered as long as the file's
stamp stays the same: size, times and inode. A bit that rots below the file system leaves the stamp as it was, so what
is verified, reused or published is read (`read_hash`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded, StoredFiles, parts_of
from surgeon.checkpoint.hashing import CHANGED, Stamp, file_hash, file_stamp, is_settled, sha256
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.storage import File, Header, TensorInfo, on_disk, read_pieces
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.errors import CheckpointError, InputError
from surgeon.inside import replacing

_TENSOR = "tensor "  # before a tensor's name, where hashes are kept
_LARGE = 1 << 20  # bytes; a smaller file is hashed in a millisecond
# Files that say how text becomes tokens. A chat template is not among them: nothing here applies one.
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens")


@dataclass(frozen=True)
class Fingerprint:
    """All that a kept result depends on; what it does not depend on is left at its default.

    Every cache names its files by `key()`, so that no change of an ingredient finds what was made with another.
    """

    version: int  # of the kept file's format and of the way it is computed
    model: str  # `content_hash` or `identity` of the checkpoint
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json, whole
    tokenizer: Mapping[str, str] = field(default_factory=dict)  # `tokenizer_hashes`
    text: str = ""  # the SHA-256 of the text
    settings: Mapping[str, Any] = field(default_factory=dict)  # plain data: of the recipe, of the arithmetic
    tensors: tuple[str, ...] = ()  # names, in the order that matters
    device: str = ""  # where the model ran
    attention: str = ""  # the attention implementation asked for; the library's choice follows from `libraries`
    libraries: Mapping[str, str] = field(default_factory=dict)  # `library_versions` where the model ran

    def key(self) -> str:
        """Return the SHA-256 of all ingredients, 64 hexadecimal digits."""
        return sha256(json.dumps(asdict(self), sort_keys=True, allow_nan=True).encode())


def tokenizer_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file beside the weights that says how text becomes tokens."""
    return {
        path.name: stored_hash(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and (path.name.startswith(_TOKENIZER) or path.suffix in (".model", ".tiktoken"))
    }


@cache
def library_versions() -> Mapping[str, str]:
    """Return the versions of the libraries that run a model; neither is imported."""
    return {package: importlib.metadata.version(package) for package in ("torch", "transformers", "tokenizers")}


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
        hashes = FileHashes(self._file.hexdigest(), {name: d.hexdigest() for name, d in self._tensors.items()})
        if self._header.stamp is not None and self._header.settled:
            tensors = {_TENSOR + name: digest for name, digest in hashes.tensors.items()}
            _remember(self._header.stamp, {"file": hashes.file} | tensors)
        return hashes


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


def _recall(key: Stamp | str) -> dict[str, str]:
    """Return what is remembered of a file; {} if that is nothing, or damaged."""
    return recall(path_of("hashes", sha256(str(key).encode()), ".json")) or {}


def _remember(key: Stamp | str, hashes: Mapping[str, str]) -> None:
    """Remember hashes of a file, beside what is known of it."""
    remember(path_of("hashes", sha256(str(key).encode()), ".json"), _recall(key) | dict(hashes))


def seal(path: Path, written: Path | None = None) -> None:
    """Write down the SHA-256 of a finished file, as `NAME.sha256` beside it; of `written`, which is to get its name."""
    with replacing(_seal_of(path)) as part:
        part.write_text(file_hash(written or path) + "\n", encoding="ascii")


def publish_sealed(written: Path, path: Path) -> None:
    """Give a finished file its name, which it has only with its seal beside it."""
    seal(path, written)
    written.replace(path)


def is_sealed(path: Path) -> bool:
    """True if the file is there and is the one that was sealed; without its seal a kept file is not believed."""
    try:
        return _seal_of(path).read_text(encoding="ascii").strip() == read_hash(path)
    except (OSError, ValueError):
        return False


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def damaged(folder: Path, files: Mapping[str, str], jobs: int) -> list[str]:
    """Say of each file below `folder` that is missing, or has not the SHA-256 given for it, what is wrong with it.

    Every byte is read: a disk that gives other bytes than it was given moves no stamp.

    Raises:
        InputError: a path leads out of the folder.
    """
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{folder}: names the file {name!r}, which lies outside of it")

    def problem(name: str) -> str | None:
        path, expected = folder / name, files[name]
        if not path.is_file():
            return f"{path}: missing"
        digest = read_hash(path)
        said = f"its SHA-256 is {digest[:12]}..., and was {expected[:12]}..."
        return f"{path}: not the file that was written ({said})" if digest != expected else None

    with ThreadPoolExecutor(jobs) as pool:
        return [said for said in pool.map(problem, files) if said is not None]


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Refuse a source whose files are no longer those whose headers were read.

    Raises:
        CheckpointError: one was written to, replaced or removed meanwhile.
    """
    for header in checkpoint.headers:
        if header.stamp is not None:
            try:
                now = file_stamp(on_disk(header.path).stat())
            except OSError:
                raise CheckpointError(f"{header.path}: was removed while it was read; nothing was published") from None
            if now != header.stamp:
                raise CheckpointError(f"{header.path}: {CHANGED}")


def source_file_hashes(checkpoint: Checkpoint, jobs: int) -> dict[File, str]:
    """Return the SHA-256 of each weight file of a source, from memory where the file has not changed.

    Of a file that is on the Hub only, the Hub says it.
    """

    def job(header: Header) -> str:
        if isinstance(header.path, RemoteFile) and header.path.sha256 is not None:
            return header.path.sha256
        return hashes_of(header).file

    with ThreadPoolExecutor(jobs) as pool:
        digests = pool.map(job, checkpoint.headers)
        return {header.path: digest for header, digest in zip(checkpoint.headers, digests, strict=True)}


def tensor_hashes(checkpoint: Checkpoint, jobs: int, names: Collection[str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of the bytes of each stored tensor, or of logical `names` only, from memory if known.

    That of a quantized tensor is over the hashes of the stored ones that it lies in, in their order. Of a file on the
    Hub only these tensors are fetched.
    """
    wanted = None if names is None else {part.name for name in names for part in parts_of(checkpoint.info(name))}

    def job(header: Header) -> dict[str, str]:
        tensors = [info for info in header.tensors.values() if wanted is None or info.name in wanted]
        if isinstance(header.path, RemoteFile):
            return _remote_hashes(header.path, tensors)
        hashes = hashes_of(header).tensors if tensors else {}
        return {info.name: hashes[info.name] for info in tensors}

    with ThreadPoolExecutor(jobs) as pool:
        stored = {name: digest for part in pool.map(job, checkpoint.headers) for name, digest in part.items()}
    if names is None:
        return stored
    parts = {name: [stored[part.name] for part in parts_of(checkpoint.info(name))] for name in names}
    return {name: of[0] if len(of) == 1 else sha256("\n".join(of).encode()) for name, of in parts.items()}


def _remote_hashes(file: RemoteFile, tensors: Iterable[TensorInfo]) -> dict[str, str]:
    """Return the hash of each of some tensors of a file on the Hub, made where it is not remembered at its commit."""
    key = f"{file.repository} {file.commit} {file.name}"
    known, names = _recall(key), {_TENSOR + info.name: info for info in tensors}
    missing = {name: hash_tensor(info) for name, info in names.items() if name not in known}
    if missing:
        _remember(key, missing)
    return {info.name: (known | missing)[name] for name, info in names.items()}


def base_hashes(checkpoint: Checkpoint, jobs: int, names: Collection[str]) -> dict[str, str]:
    """Return the SHA-256 of the values of logical tensors in their dtype, by which patches know their base.

    Those of a quantized tensor are decoded for it, so that a patch fits the dequantized model too.
    """
    infos = [checkpoint.info(name) for name in names]
    coded = [info for info in infos if isinstance(info, Coded)]
    plain = [info.name for info in infos if not isinstance(info, Coded)]
    with ThreadPoolExecutor(jobs) as pool:
        digests = pool.map(lambda info: _digest(piece for _, piece in info.pieces(StoredFiles())), coded)
        decoded = dict(zip([info.name for info in coded], digests, strict=True))
    return {**(tensor_hashes(checkpoint, jobs, plain) if plain else {}), **decoded}


def hash_tensor(info: TensorInfo) -> str:
    """Return the SHA-256 of a stored tensor's bytes, which are read."""
    return _digest(read_pieces(info, 1 << 20))


def _digest(pieces: Iterable[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.view(np.uint8).data)
    return digest.hexdigest()


def content_hash(checkpoint: Checkpoint, jobs: int) -> str:
    """Return one hash over names, dtypes, shapes and bytes of all tensors; sharding does not change it."""
    hashes = tensor_hashes(checkpoint, jobs)
    lines = [
        f"{name} {info.dtype} {list(info.shape)} {hashes[name]}" for name, info in sorted(checkpoint.stored.items())
    ]
    return sha256("\n".join(lines).encode())


def identity(checkpoint: Checkpoint, jobs: int) -> str:
    """Return what tells a checkpoint from all others: its commit if it is from the Hub, else its content hash."""
    return checkpoint.source.pinned if checkpoint.source.revision is not None else content_hash(checkpoint, jobs)
