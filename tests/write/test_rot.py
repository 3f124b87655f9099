"""A bit that rots below the file system moves no stamp: what is verified, reused or published is read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import surgeon
from surgeon.api import check_files
from surgeon.checkpoint.fingerprint import is_sealed, remember_file, seal, stored_hash
from surgeon.checkpoint.hashing import file_hash, file_stamp, is_settled, sha256
from surgeon.errors import CheckpointError
from surgeon.hub.parcel import pack

RECIPE = """\
version: 1
name: rot
model: builtin:tiny30
regions:
  some: {{select: {{random: 0.01, seed: 1}}}}
variants:
  cut: {{operations: [{{zero: some}}]}}
output: {out}
"""


def rot(path: Path, whole: bytes) -> None:
    """Flip one bit so that for all that is remembered nobody has written to the file."""
    path.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 16]) + whole[-999:])
    while not is_settled(file_stamp(path.stat())):
        time.sleep(0.02)
    remember_file(file_stamp(path.stat()), sha256(whole))
    assert stored_hash(path) == sha256(whole) != file_hash(path)


def test_verify_push_and_another_run_read_what_they_bless(tmp_path: Path) -> None:
    recipe, out = tmp_path / "rot.yaml", tmp_path / "out"
    recipe.write_text(RECIPE.format(out=out))
    surgeon.apply(recipe)
    weights = out / "variants" / "cut" / "model.safetensors"
    whole = weights.read_bytes()
    for bless in (
        lambda: check_files(out),
        lambda: check_files(weights.parent),
        lambda: pack(weights.parent, "hf://org/cut"),
    ):
        rot(weights, whole)
        with pytest.raises(CheckpointError, match="not the file that was written"):
            bless()
    rot(weights, whole)
    assert not surgeon.apply(recipe).variants["cut"].reused
    assert weights.read_bytes() == whole
    assert check_files(out) > 0


def test_what_is_kept_is_read_before_it_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    path.write_bytes(bytes(1 << 20))
    seal(path)
    assert is_sealed(path)
    rot(path, bytes(1 << 20))
    assert not is_sealed(path)
