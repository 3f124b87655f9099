"""The command that measures a GPU runs, at a tiny size on a CPU, and finds that the CPU agrees with itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), str(tmp_path), "--device", "cpu", "--size", "tiny", "--families"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["right"] == {"builtin:tiny30": {"jaccard": 1.0, "score": 0.0, "perplexity": 0.0}}
    for dtype in ("float32", "native"):
        assert found["fast"][dtype]["tokens"] > 0 < found["fast"][dtype]["plain"]
    assert found["shares"] == found["nccl"] == "skipped: it takes a GPU"
    assert "| builtin:tiny30 | 1.000000 | 0.0e+00 |" in (tmp_path / "gpu.md").read_text()
