"""What a plan says a run takes, against what a run takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ModelMaker

import surgeon

# A run in a process of its own, whose anonymous memory a thread looks at all the while.
MEASURED = """
import sys, threading, time
import surgeon
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        status = open("/proc/self/status").read()
        peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
surgeon.apply(sys.argv[1])
done.set()
thread.join()
print(peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read off Linux's /proc")
def test_the_estimate_of_memory_is_of_the_right_size(
    recipe: Callable[..., Path], llama: Path, make_model: ModelMaker, tmp_path: Path
) -> None:
    """With much and with little text at a time: what lies between them is what the activations take."""
    text = tmp_path / "long.txt"
    text.write_text("Alle Menschen sind frei und gleich an Würde und Rechten geboren.\n" * 3000, encoding="utf-8")
    folder = make_model("llama", max_position_embeddings=4096, intermediate_size=128)
    estimated, measured = [], []
    for sequences, length in ((1, 32), (32, 1024)):
        changes = {
            str(llama): str(folder), "languages: [de, fr]": "languages: [de]",
            "samples: 4": f"samples: {sequences}, batch_size: {sequences}", "_length: 32": f"_length: {length}",
            "  tokens: 64\n  window: 32": f"  languages: [de]\n  tokens: 64\n  window: {min(length, 64)}",
        }  # fmt: skip
        path = recipe(**changes)
        path.write_text(path.read_text().replace("{de: ", f"{{de: {text}, unused: "), encoding="utf-8")
        estimated.append(surgeon.plan_recipe(path).peak_memory)
        environment = {**os.environ, "SURGEON_CACHE": str(tmp_path / f"cache{length}"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(path)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        measured.append(int(json.loads(done.stdout)))
    for guess, found in zip(estimated, measured, strict=True):
        assert found / 3 < guess < 3 * found
    between = (estimated[1] - estimated[0], measured[1] - measured[0])
    assert between[1] / 3 < between[0] < 3 * between[1]
