"""What the loopback Hub keeps: repositories with their commits, and what was asked of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".npz", ".png", ".gz")
INITIAL = {".gitattributes": "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES).encode()}


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Stored:
    """A file of a commit."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def oid(self) -> str:
        return git_hash(self.pointer if self.lfs else self.data)

    def entry(self, path: str) -> dict[str, Any]:
        """As in a tree listing."""
        result: dict[str, Any] = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        if self.lfs:
            lfs = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
            result |= {"lfs": lfs, "xetHash": hashlib.sha256(b"xet" + self.data).hexdigest()}
        return result


@dataclass
class Repo:
    """Commits by their id, refs that point to them, and the LFS objects that may be committed here."""

    private: bool = False
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)

    def commit(self, ref: str, files: dict[str, Stored]) -> str:
        parts = [ref, str(len(self.commits)), *(f"{path}:{stored.oid}" for path, stored in sorted(files.items()))]
        sha = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Seen:
    """One request: `received` and `sent` count the bytes of the two bodies."""

    method: str
    path: str
    query: dict[str, list[str]]
    range: str | None
    authorized: bool
    status: int = 0
    received: int = 0
    sent: int = 0


@dataclass
class Fault:
    """What `fail` arranged: the next `times` matching requests after `skip` others get this."""

    method: str
    pattern: str
    status: int
    drop_after: int | None
    body: str
    headers: dict[str, str]
    times: float
    skip: int
    drip: float = 0.0  # seconds before each byte of the answer, which then never ends
    content: bytes | None = None  # instead of what is there
