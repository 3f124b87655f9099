"""A remembered hash is used for the very file it was made of: everything that tells a file from another counts."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import tensor_hashes
from surgeon.errors import CheckpointError


@pytest.mark.parametrize("field", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_whatever_the_system_says_of_the_file_makes_it_another(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One field at a time is changed in what the system says, and the bytes with it."""
    path = tmp_path / "model.safetensors"
    said: dict[str, Any] = {"st_size": 1, "st_mtime_ns": 2, "st_ctime_ns": 3, "st_ino": 4}
    real = os.fstat

    def stat(descriptor: int) -> Any:
        found = real(descriptor)
        if found.st_ino != number:
            return found
        kept = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return SimpleNamespace(**{**kept, **said, "st_size": found.st_size + said["st_size"] - 1})

    save_file({"t": np.zeros(4, np.float32)}, path)
    number = path.stat().st_ino
    monkeypatch.setattr("surgeon.checkpoint.storage.os.fstat", stat)
    before = tensor_hashes(Checkpoint.open(path), 1)
    with path.open("r+b") as file:  # other bytes, of the same length, in place
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert tensor_hashes(Checkpoint.open(path), 1) == before  # as far as the system says, nothing happened
    said[field] += 1
    if field == "st_size":  # which the header does not fit then
        with pytest.raises(CheckpointError, match="81 bytes in all, 80 by its header"):
            Checkpoint.open(path)
        return
    assert tensor_hashes(Checkpoint.open(path), 1) != before
