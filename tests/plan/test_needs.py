"""What a plan says a run takes, against what a run takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ModelMaker

import surgeon

# A run in a process of its own, whose anonymous memory a thread looks at all the while.
MEASURED = """
# as the command line does it, which sets how the allocator keeps memory
from surgeon.memory import hand_back_large_blocks
hand_back_large_blocks()
import sys, threading, time
import surgeon
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        status = open("/proc/self/status").read()
        peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)
thread = threading.Thread(target=watch, daemon=True)
thread.start()
surgeon.apply(sys.argv[1])
done.set()
thread.join()
print(peak)
"""
RECIPE = """
version: 1
name: sized
model: {model}
corpus: {{de: {folder}/de.txt, fr: {folder}/fr.txt}}
regions:
  core:
    score: {{kind: grad_param, languages: [de, fr], samples: {batch}, batch_size: {batch}, sequence_length: {length}}}
    select: {{top: 0.01}}
  random: {{control: {{of: core}}}}
variants:
  cut: {{operations: [{{zero: core}}], write: false}}
  control: {{operations: [{{zero: random}}], write: false}}
verify: {{languages: [de, fr], tokens: {length}, window: {length}, batch_size: {batch}}}
output: {out}
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read off Linux's /proc")
@pytest.mark.parametrize(
    ("hidden", "inner", "batch", "length", "memory"),
    [
        pytest.param(1024, 10240, 1, 16, "500M", id="layers of thirty-four million"),
        pytest.param(128, 512, 12, 1024, "500M", id="much text at a time"),
    ],
)
def test_a_run_takes_what_the_plan_says_or_up_to_a_third_less(
    make_model: ModelMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hidden: int,
    inner: int,
    batch: int,
    length: int,
    memory: str,
) -> None:
    """In bfloat16; layer by layer, and where there is more memory in one go."""
    monkeypatch.setenv("SURGEON_MEMORY", memory)
    model = make_model(
        "llama", dtype="bfloat16", hidden_size=hidden, intermediate_size=inner, num_hidden_layers=3,
        max_position_embeddings=2048,
    )  # fmt: skip
    for language, line in (("de", "Alle Menschen sind frei und gleich.\n"), ("fr", "Tous naissent libres et égaux.\n")):
        (tmp_path / f"{language}.txt").write_text(line * 1200, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        RECIPE.format(model=model, folder=tmp_path, out=tmp_path / "out", length=length, batch=batch), encoding="utf-8"
    )
    told = surgeon.plan_recipe(recipe).peak_memory
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    taken = int(json.loads(done.stdout.splitlines()[-1]))
    print(f"told {told / 1e6:.0f} MB, taken {taken / 1e6:.0f} MB")
    assert taken <= told <= 4 / 3 * taken
