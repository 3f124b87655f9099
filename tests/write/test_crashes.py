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
def test_whatever_call_a_run_dies_at_the_same_command_finishes_it(
    shim: Path, make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    """In an empty folder, and where an older run has left its files."""
    model = make_model("llama", dtype="bfloat16", shard="20KB")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    recipe, empty, older = tmp_path / "recipe.yaml", tmp_path / "empty", tmp_path / "older"
    empty.mkdir()
    own = {"PYTHONDONTWRITEBYTECODE": "1", "SURGEON_CACHE": str(older / "before" / "cache")}
    recipe.write_text(RECIPE.format(model=model, fraction=0.02, **texts))
    done = surgeon_forked("apply", recipe, "--output", older / "before" / "out", **own)
    assert done.returncode == 0, done.stderr
    recipe.write_text(RECIPE.format(model=model, fraction=0.01, **texts))
    often = lambda count: os.environ.get("SURGEON_CRASHES", str(count))  # noqa: E731
    # So many runs are killed, and so many have a call that fails.
    scenes = [str(empty), often(5), often(6), str(older), often(3), often(6)]
    result = subprocess.run(
        [sys.executable, HERE / "crashing.py", recipe, *scenes],
        capture_output=True, text=True, env={**os.environ, **own, "LD_PRELOAD": str(shim)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    for found in json.loads(result.stdout.splitlines()[-1]):
        print(found)
        for scenario, code in (("kill", "-9"), ("fail", "3")):
            assert found[scenario]["problems"] == []
            codes = found[scenario]["codes"]
            assert codes.get(code, 0) > sum(codes.values()) // 2  # most of them did strike
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
