"""Killed, or failing, at any call that changes a file: nothing half done, and the same command finishes the same.

The calls are counted by a small library that is built here and preloaded (`shim.c`); `crashing.py` does the runs.
How many there are is set by SURGEON_CRASHES, and how long they may take by SURGEON_CRASH_SECONDS, for a search by hand.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ModelMaker
from forking import surgeon_forked

HERE = Path(__file__).parent
RECIPE = """\
version: 1
name: crash
model: {model}
corpus: {{de: {de}, fr: {fr}}}
regions:
  r: {{select: {{random: {fraction}, seed: 0}}, layers: [0, 0]}}
  s:
    score: {{kind: grad_param, languages: [de, fr], samples: 2, sequence_length: 16}}
    select: {{top: {fraction}}}
    layers: [0, 0]
  c: {{control: {{of: s, draw: bottom}}}}
variants:
  a: {{operations: [{{zero: r}}]}}
  b: {{operations: [{{scale: s, by: 2.0}}]}}
  p: {{operations: [{{zero: r}}], write: patch}}
output: out
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"], check=True)
    return library


@pytest.mark.slow
@pytest.mark.parametrize(("start", "killed", "failing"), [("empty", 5, 6), ("older run", 3, 6)])
def test_whatever_call_a_run_dies_at_the_same_command_finishes_it(
    start: str, killed: int, failing: int, shim: Path, make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    model = make_model("llama", dtype="bfloat16", shard="20KB")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    recipe, work = tmp_path / "recipe.yaml", tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "SURGEON_CACHE": str(work / "before" / "cache")}
    if start == "older run":
        recipe.write_text(RECIPE.format(model=model, fraction=0.02, **texts))
        done = surgeon_forked("apply", recipe, "--output", work / "before" / "out", **environment)
        assert done.returncode == 0, done.stderr
    recipe.write_text(RECIPE.format(model=model, fraction=0.01, **texts))
    if "SURGEON_CRASHES" in os.environ:
        killed = failing = int(os.environ["SURGEON_CRASHES"])
    result = subprocess.run(
        [sys.executable, HERE / "crashing.py", work, recipe, str(killed), str(failing)],
        capture_output=True, text=True, env={**environment, "LD_PRELOAD": str(shim)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    print(found)
    for scenario, code, runs in (("kill", "-9", killed), ("fail", "3", failing)):
        assert found[scenario]["problems"] == []
        assert found[scenario]["codes"].get(code, 0) > runs // 2  # most of them did strike
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
