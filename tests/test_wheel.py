"""What a user gets from the package index: the wheel alone, in an environment of its own, in another folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
# Bounds that hold on the whole texts mean nothing on little of them.
LITTLE = ["--set", "regions.core.score.samples=4", "--set", "verify.tokens=64", "--set", "verify.expect=[]"]


def needed(distribution: importlib.metadata.Distribution, found: dict[str, importlib.metadata.Distribution]) -> None:
    """Collect what a distribution declares that it needs, and what that needs, as it is installed here."""
    for line in distribution.requires or []:
        requirement = Requirement(line)
        if (requirement.marker is None or requirement.marker.evaluate({"extra": ""})) and requirement.name not in found:
            found[requirement.name] = importlib.metadata.distribution(requirement.name)
            needed(found[requirement.name], found)


def lend(site: Path) -> None:
    """Link into an environment what the wheel there needs, and nothing else that happens to be installed here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    (wheel,) = importlib.metadata.distributions(name="model-surgeon", path=[str(site)])
    needed(wheel, found)
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(distribution.locate_file(top)))
    assert not (site / "pytest").exists()


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
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    lend(site)
    surgeon = tmp_path / "venv" / "bin" / "surgeon"
    assert "zero_core" in run(surgeon, "recipes")
    report = json.loads(run(surgeon, "apply", "zero_core", "--json", *LITTLE))
    assert report["model"]["name"] == "builtin:tiny30"
    assert len(report["perplexity"]["core-zeroed"]) == 30
    assert report["summary"]["core-zeroed"]["ratio_to_base"] > 1.5
    assert (tmp_path / "out" / "zero-core" / "variants" / "core-zeroed" / "model.safetensors").is_file()
