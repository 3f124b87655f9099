"""Hashes of files are remembered, and never for another content."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import ModelMaker

import surgeon.checkpoint.fingerprint as remembered
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import (
    content_hash,
    is_sealed,
    known_hashes,
    seal,
    source_file_hashes,
    stored_hash,
    tensor_hashes,
)
from surgeon.checkpoint.hashing import file_hash
from surgeon.checkpoint.storage import allocate_file, map_bytes
from surgeon.checkpoint.store import cache_folder


def settle() -> None:
    time.sleep(0.15)


@pytest.fixture
def model(make_model: ModelMaker, tmp_path: Path) -> Path:
    shutil.copytree(make_model("llama", dtype="bfloat16", shard="20KB"), tmp_path / "model")
    settle()
    return tmp_path / "model"


def test_hashes_are_those_of_the_bytes_and_one_reading_gives_all(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(model)
    found = tensor_hashes(checkpoint, 2)
    for name, info in checkpoint.tensors.items():
        raw = Path(str(info.path)).read_bytes()[info.offset : info.offset + info.nbytes]
        assert found[name] == hashlib.sha256(raw).hexdigest(), name
    monkeypatch.setattr(remembered, "FileDigest", lambda header: pytest.fail("read again"))
    files = source_file_hashes(Checkpoint.open(model), 2)
    assert files == {h.path: hashlib.sha256(Path(str(h.path)).read_bytes()).hexdigest() for h in checkpoint.headers}
    assert content_hash(Checkpoint.open(model), 1) == content_hash(checkpoint, 2)


@pytest.mark.parametrize("step", [1, 3, 7, 8, 64, 1 << 20])
def test_pieces_of_any_size_give_the_hashes_of_every_tensor(step: int, tmp_path: Path) -> None:
    specs = [("a", "U8", (5,)), ("none", "F32", (0, 3)), ("b", "U8", (1,)), ("c", "F32", (2, 7)), ("last", "U8", (0,))]
    header = allocate_file(tmp_path / "x.safetensors", specs, {"note": "x"})
    map_bytes(tmp_path / "x.safetensors", "shared")[header.data_start :] = range(header.file_size - header.data_start)
    whole = (tmp_path / "x.safetensors").read_bytes()
    digest = remembered.FileDigest(header)
    for start in range(0, len(whole), step):
        digest.update(memoryview(whole)[start : start + step])
    found = digest.finish()
    assert found.file == hashlib.sha256(whole).hexdigest()
    for name, info in header.tensors.items():
        expected = hashlib.sha256(whole[info.offset : info.offset + info.nbytes]).hexdigest()
        assert found.tensors[name] == expected, name


def test_a_file_put_in_place_of_another_with_its_size_and_time_is_hashed_anew(model: Path, tmp_path: Path) -> None:
    shard = sorted(model.glob("*.safetensors"))[0]
    before = content_hash(Checkpoint.open(model), 1)
    found = shard.stat()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    with shard.open("r+b") as file:  # the same inode
        file.write(data)
    os.utime(shard, ns=(found.st_atime_ns, found.st_mtime_ns))
    changed = content_hash(Checkpoint.open(model), 1)
    assert changed != before
    data[-1] ^= 1
    (tmp_path / "other").write_bytes(data)
    os.utime(tmp_path / "other", ns=(found.st_atime_ns, found.st_mtime_ns))
    os.replace(tmp_path / "other", shard)  # another inode, as `cp -p` to a new name and a rename make
    assert content_hash(Checkpoint.open(model), 1) == before


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "large"
    for number in range(20):  # within one tick of the file system's clock, and of one size
        path.write_bytes(bytes([number]) * (1 << 20))
        assert stored_hash(path) == file_hash(path)
    settle()
    assert stored_hash(path) == file_hash(path)
    assert remembered._recall(remembered.file_stamp(path.stat()))


@pytest.mark.parametrize("damage", ["[]", "{}", '{"hashes": {}, "check": 1}', "[" * 60_000, "", "flip"])
def test_a_damaged_memory_is_made_again(model: Path, damage: str) -> None:
    checkpoint = Checkpoint.open(model)
    before = content_hash(checkpoint, 1)
    for memory in (cache_folder() / "hashes").glob("*.json"):
        data = bytearray(memory.read_bytes())
        at = data.index(b'": "') + 4
        data[at : at + 1] = b"0" if data[at : at + 1] != b"0" else b"1"
        memory.write_bytes(data if damage == "flip" else damage.encode())
    assert known_hashes(checkpoint.headers[0]) is None
    assert content_hash(checkpoint, 1) == before
    assert known_hashes(checkpoint.headers[0]) is not None


def test_a_sealed_file_is_believed_as_long_as_it_is_the_one_that_was_sealed(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    assert not is_sealed(path)
    path.write_bytes(b"regions")
    assert not is_sealed(path)
    seal(path)
    assert is_sealed(path)
    path.write_bytes(b"Regions")
    assert not is_sealed(path)
    path.unlink()
    assert not is_sealed(path)
