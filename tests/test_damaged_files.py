"""Files of ours that came to harm, or that somebody made: one message and exit code 2, in the time of a whole one."""

from __future__ import annotations

import base64
import json
import shutil
import time
import zlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import surgeon
from surgeon.cli import app
from surgeon.errors import InputError, SurgeonError
from surgeon.report.data import Report
from surgeon.report.regions import Scan

RECIPE = """\
version: 1
name: small
model: builtin:tiny30
regions:
  some: {select: {random: 0.1, seed: 1}, layers: [0, 0]}
variants:
  cut: {operations: [{zero: some}]}
  patched: {operations: [{zero: some}], write: patch}
output: OUT
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "r.yaml").write_text(RECIPE.replace("OUT", str(folder / "out")))
    surgeon.apply(folder / "r.yaml")
    return folder / "out"


def ends(*words: str | Path) -> str:
    """Run a command that must end with one of our errors, and soon; returns what it says."""
    began = time.monotonic()
    done = CliRunner().invoke(app, [*map(str, words)])
    assert isinstance(done.exception, SurgeonError), repr(done.exception)
    assert done.exception.exit_code == 2
    assert time.monotonic() - began < 20
    return str(done.exception)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00x", b"\xe4\xe4"])
def test_texts_that_are_not_utf8(content: bytes, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "variants" / "cut" / "README.md").write_bytes(content)
    (out / "recipe.yaml").write_bytes(content)
    assert "README.md: the model card is not UTF-8" in ends("push", out / "variants" / "cut", "you/x", "--dry-run")
    patch = out / "variants" / "patched.patch.safetensors"
    assert "recipe.yaml: the recipe of the run is not UTF-8" in ends("push", patch, "you/x", "--dry-run")
    (out / "recipe.yaml").unlink()
    assert "recipe.yaml: no plain file there" in ends("push", patch, "you/x", "--dry-run")


@pytest.mark.parametrize("outputs", [[], [1], 3, "x", None, {"variants/patched.patch.safetensors": 3}])
def test_a_manifest_whose_outputs_are_none(outputs: object, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "outputs": outputs}))
    assert "manifest" in ends("push", out / "variants" / "patched.patch.safetensors", "you/x", "--dry-run")
    assert "manifest" in ends("push", out / "variants" / "cut", "you/x", "--dry-run")


def test_a_marker_of_very_many_operations(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    path = out / "variants" / "cut" / "surgeon.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "operations": [{"zero": "some"}] * 100_000}))
    assert "surgeon.json is damaged at operations: List should have at most 1000 items" in ends("inspect", path.parent)


def test_a_recipe_of_very_many_operations(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("[{zero: some}]", "[" + "{zero: some}, " * 10_000 + "]"))
    assert "at most 1000 items" in ends("plan", tmp_path / "r.yaml")


def test_a_scan_that_would_unpack_to_very_much(whole: Path, tmp_path: Path) -> None:
    levels = base64.b64encode(zlib.compress(b"\0" * 200_000_000)).decode()
    for rows, columns, text in ((1, 8, levels), (1, 8, ""), (1, 8, "!"), (1, 10**9, levels), (1, -1, levels)):
        with pytest.raises(ValueError, match="scan"):
            Scan(rows=[(None, "x")] * rows, columns=columns, width=1, levels=text)
    report = json.loads((whole / "report.json").read_text())
    report["regions"]["some"]["scan"] = {"rows": [[0, "x"]], "columns": 8, "width": 1, "levels": levels}
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="not a report that this surgeon reads"):
        Report.load(tmp_path / "report.json")
