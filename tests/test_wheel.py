"""What a user gets from the package index: the wheel alone, in an empty environment, in another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Bounds that hold on the whole texts mean nothing on little of them.
LITTLE = ["--set", "regions.core.score.samples=4", "--set", "verify.tokens=64", "--set", "verify.expect=[]"]


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_alone(tmp_path: Path) -> None:
    def run(*command: object) -> str:
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        environment["SURGEON_CACHE"] = str(tmp_path / "cache")
        result = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("model_surgeon-*.whl")
    assert wheel.stat().st_size <= 16e6
    names = zipfile.ZipFile(wheel).namelist()
    assert "surgeon/assets/tiny30/model.safetensors" in names
    assert "surgeon/recipes/zero_core.yaml" in names
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    pip = [tmp_path / "venv" / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    run(*pip, "torch")
    run(*pip, wheel)
    surgeon = tmp_path / "venv" / "bin" / "surgeon"
    assert "zero_core" in run(surgeon, "recipes")
    report = json.loads(run(surgeon, "apply", "zero_core", "--json", *LITTLE))
    assert report["model"]["name"] == "builtin:tiny30"
    assert len(report["perplexity"]["core-zeroed"]) == 30
    assert report["summary"]["core-zeroed"]["ratio_to_base"] > 1.5
    assert (tmp_path / "out" / "zero-core" / "variants" / "core-zeroed" / "model.safetensors").is_file()
