"""A source that changes while it is used: exit code 2, one message, and nothing published."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ModelMaker, with_pictures
from forking import run_forked

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import OpenFile, read_header, read_pieces
from surgeon.errors import CheckpointError

RECIPE = """\
version: 1
name: changing
model: {model}
corpus: {{de: {de}, fr: {fr}}}
regions:
  core: {{score: {{kind: magnitude}}, select: {{top: 0.05}}}}
variants:
  cut: {{operations: [{{zero: core}}], write: {write}}}
verify: {{tokens: 32, window: 16}}
output: {output}
"""
# Where it strikes: when a view of a tensor was just handed out, so that the next byte of it may fault; before a shard
# is copied; when all is measured of a variant that is not written, and only the report is to be.
MOMENTS: dict[str, dict[str, Any]] = {
    "a view is in use": {
        "owner": "surgeon.checkpoint.checkpoint", "name": "Checkpoint.private_array", "nth": 3, "after": True,
    },
    "scores are made": {"owner": "surgeon.checkpoint.checkpoint", "name": "Checkpoint.array", "nth": 2, "after": True},
    "a shard is copied": {"owner": "surgeon.write.copying", "name": "copy_shard", "nth": 1, "after": False},
    "all is measured": {"owner": "surgeon.api", "name": "seal", "nth": 1, "after": False},
}  # fmt: skip
CASES = [
    ("a view is in use", "shorter"), ("a view is in use", "other"), ("scores are made", "shorter"),
    ("a shard is copied", "shorter"), ("a shard is copied", "gone"), ("all is measured", "gone"),
    ("all is measured", "other"),
]  # fmt: skip


@pytest.mark.slow
def test_a_source_that_changes_ends_in_one_message_and_nothing_published(
    make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    model = make_model("llama", hidden_size=128, intermediate_size=512, num_attention_heads=4, num_key_value_heads=4)
    cases = []
    for i, (moment, how) in enumerate(CASES):
        copy, recipe = tmp_path / f"model{i}", tmp_path / f"{i}.yaml"
        write = "false" if moment == "all is measured" else "true"
        shutil.copytree(model, copy)
        recipe.write_text(RECIPE.format(model=copy, output=tmp_path / f"out{i}", write=write, **texts))
        strike = {**MOMENTS[moment], "path": str(copy / "model.safetensors"), "how": how}
        environment = {"SURGEON_CACHE": str(with_pictures(tmp_path / f"cache{i}"))}
        cases.append({"arguments": ["apply", str(recipe)], "environment": environment, "strike": strike})
    for i, (done, (moment, how)) in enumerate(zip(run_forked(cases), CASES, strict=True)):
        where = f"{moment}, {how}: {done['code']}: {done['said'][-1500:]}"
        assert done["code"] == 2, where
        errors = [line for line in done["said"].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, where
        assert f"model{i}/model.safetensors" in errors[0], where
        assert "Traceback" not in done["said"], where
        out = tmp_path / f"out{i}"
        visible = [path.relative_to(out) for path in out.rglob("*")]
        published = {path.name for path in visible if not any(part.startswith(".") for part in path.parts)}
        assert not published & {"manifest.json", "report.json"}, where
        assert "model.safetensors" not in published, where


@pytest.mark.slow
def test_a_comparison_of_what_changes_is_none(llama: Path, tmp_path: Path) -> None:
    cases = []
    for how in ("shorter", "other"):
        shutil.copytree(llama, tmp_path / how)
        strike = {
            "owner": "surgeon.diff.comparison",
            "name": "compare_checkpoints",
            "nth": 1,
            "after": False,
            "how": how,
        }
        strike["path"] = str(tmp_path / how / "model.safetensors")
        saved = str(tmp_path / f"{how}.safetensors")
        cases.append({"arguments": ["diff", str(llama), str(tmp_path / how), "--save", saved], "strike": strike})
    for done in run_forked(cases):
        assert done["code"] == 2, done
        assert done["said"].count("error: ") == 1, done
    assert not list(tmp_path.glob("*.safetensors"))


def small(path: Path) -> Path:
    header = {"w": {"dtype": "F32", "shape": [4096], "data_offsets": [0, 16384]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + np.arange(4096, dtype="<f4").tobytes())
    return path


def test_reading_what_is_not_there_any_more_is_an_error(tmp_path: Path) -> None:
    path = small(tmp_path / "x.safetensors")
    checkpoint, header = Checkpoint.open(path), read_header(path)
    file = OpenFile(header)
    assert file.tensor(header.tensors["w"])[7] == 7
    os.truncate(path, 9000)
    for read in (
        lambda: file.tensor(header.tensors["w"]),
        lambda: list(read_pieces(header.tensors["w"], 4096)),
        lambda: checkpoint.entries("w", np.array([4000])),
        lambda: checkpoint.array("w"),
        lambda: OpenFile(header),
    ):
        with pytest.raises(CheckpointError, match="was changed while it was read"):
            read()
    path.unlink()
    with pytest.raises(CheckpointError, match="was removed while it was read"):
        checkpoint.array("w")


def test_a_file_held_open_stays_the_same_whatever_takes_its_name(tmp_path: Path) -> None:
    path = small(tmp_path / "x.safetensors")
    header = read_header(path)
    file = OpenFile(header)
    path.unlink()
    path.write_bytes(b"something else")
    assert file.tensor(header.tensors["w"])[4095] == 4095
