"""The command that measures a GPU runs, at a tiny size on a CPU, and finds that the CPU agrees with itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forking import program_forked

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    done = program_forked(BENCHMARK, tmp_path, "--device", "cpu", "--size", "tiny", "--families", undrawn=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["right"] == {"builtin": {"jaccard": 1.0, "score": 0.0, "perplexity": 0.0}}
    assert found["again"] == "the same bytes"
    assert found["little"]["jaccard"] > 0.999  # sums are added in another order
    for dtype in ("float32", "native"):
        assert found[dtype]["tokens"] > 0 < found[dtype]["plain"]
    assert found["variants"]["of as many evaluations"] > 0
    assert found["shares"] == found["nccl"] == found["mixture"] == "skipped: it takes a GPU"
    assert "| builtin | 1.000000 | 0.0e+00 |" in (tmp_path / "gpu.md").read_text()
