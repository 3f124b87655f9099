"""Copies know their hashes from the writing itself, and a source that changes meanwhile is noticed."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ModelMaker
from test_staging import ZERO, random_region

import surgeon.checkpoint.fingerprint as remembered
import surgeon.write.shards as shards
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import source_file_hashes, tensor_hashes
from surgeon.checkpoint.hashing import file_hash
from surgeon.errors import CheckpointError
from surgeon.model.workplace import Workplace
from surgeon.operations.edits import Surgery
from surgeon.region.region import Region
from surgeon.write.staging import publish, stage_variant, write_variant


@pytest.fixture
def model(make_model: ModelMaker, tmp_path: Path) -> Path:
    shutil.copytree(make_model("llama", dtype="bfloat16", shard="20KB"), tmp_path / "model")
    time.sleep(0.15)  # hashes of files that changed a moment ago are not remembered
    return tmp_path / "model"


@pytest.fixture
def no_rereading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither source nor weights that were written are read a second time to be hashed."""

    def refuse(path: Path) -> str:
        assert not path.name.endswith(".safetensors"), path
        return file_hash(path)

    monkeypatch.setattr(remembered, "file_hash", refuse)
    monkeypatch.setattr("surgeon.write.staging.file_hash", refuse)
    monkeypatch.setattr(remembered, "_LARGE", 0)


@pytest.mark.parametrize("buffer", [1 << 18, 4096, 24])
def test_hashes_of_source_and_copy_are_made_while_copying(
    buffer: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_rereading: None
) -> None:
    monkeypatch.setattr(shards, "_BUFFER_BYTES", buffer)  # smaller and larger than tensors, and across their borders
    source = Checkpoint.open(model)
    one = sorted(random_region(source))[3]  # of all shards one is touched: both ways of copying
    region = Region.from_indices({one: np.array([0, 5])}, {one: source.tensors[one].shape})
    reads: list[str] = []
    real = remembered.FileDigest
    monkeypatch.setattr(remembered, "FileDigest", lambda h: (reads.append(h.path.name), real(h))[1])
    monkeypatch.setattr(shards, "FileDigest", lambda h: (reads.append(h.path.name), real(h))[1])
    written = write_variant(source, ZERO, {"r": region}, tmp_path / "v")
    found = source_file_hashes(source, 2)
    tensors = tensor_hashes(source, 2)
    assert sorted(reads) == sorted(h.path.name for h in source.headers)  # each was hashed once
    for path, digest in written.files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, path
    for header in source.headers:
        assert found[header.path] == hashlib.sha256(Path(str(header.path)).read_bytes()).hexdigest()
        for name, info in header.tensors.items():
            raw = Path(str(header.path)).read_bytes()[info.offset : info.offset + info.nbytes]
            assert tensors[name] == hashlib.sha256(raw).hexdigest()
    assert set(written.files) == {path for path in (tmp_path / "v").rglob("*") if path.is_file()}


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [cut_short, overwrite, Path.unlink])
@pytest.mark.parametrize("when", ["before", "between shards", "after"])
@pytest.mark.parametrize("touched", ["all", "none"])
def test_a_source_that_changes_is_refused_and_nothing_published(
    change: object, when: str, touched: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(change)
    source = Checkpoint.open(model)
    regions = {"r": random_region(source) if touched == "all" else Region.from_indices({}, {})}
    last = sorted(model.glob("*.safetensors"))[-1]
    if when == "before":
        change(last)
    if when == "between shards":
        real = shards.copy_shard

        def copy(surgery: Surgery, header: object, *rest: object) -> object:
            done = real(surgery, header, *rest)  # type: ignore[arg-type]
            if header is surgery.checkpoint.headers[-1]:
                change(last)
            return done

        monkeypatch.setattr("surgeon.write.copying.copy_shard", copy)

    def write() -> None:
        staged = stage_variant(Surgery(source, ZERO, regions), tmp_path / "out" / "v", Workplace("cpu", 1))
        if when == "after":
            change(last)
        publish(staged)

    with pytest.raises((CheckpointError, FileNotFoundError), match=r"changed|removed|No such file"):
        write()
    assert not (tmp_path / "out" / "v").exists()


def test_a_source_that_becomes_shorter_while_an_edit_is_made_is_an_error_and_no_fault(model: Path) -> None:
    from surgeon.operations import OPERATIONS

    source = Checkpoint.open(model)
    region = random_region(source)
    for kind in ("zero", "noise", "shuffle", "scale"):
        extra = {"noise": {"relative": 0.1, "seed": 0}, "shuffle": {"seed": 0}, "scale": {"by": 2.0}}.get(kind, {})
        operation = OPERATIONS[kind].model_validate({kind: "r", **extra})
        for path in model.glob("*.safetensors"):
            os.truncate(path, 100)
        for name in region:
            with pytest.raises(CheckpointError, match="was changed while it was read"):
                Surgery(source, [operation], {"r": region}).edit(name)
