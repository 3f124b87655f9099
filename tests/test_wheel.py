"""What a user gets from the package index: the wheel alone, in an environment of its own, in another folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
# Bounds that hold on the whole texts mean nothing on little of them.
CHANGES = ("regions.core.score.samples=2", "verify.tokens=24", "verify.new_tokens=2", "verify.expect=[]")
LITTLE = [word for change in CHANGES for word in ("--set", change)]


# Training elsewhere needs freezing only, beside what a training image has.
FOR_FREEZING = ("torch", "numpy", "safetensors", "ml_dtypes")
FREEZES = """
import importlib.util, sys
import numpy as np, torch
from safetensors.torch import save_file
from surgeon.freeze import FreezeError, freeze, verify_saved, write_bundle
from surgeon.region.region import Region

for name in ("transformers", "huggingface_hub", "pydantic", "yaml", "rich"):
    assert importlib.util.find_spec(name) is None
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
save_file(dict(model.state_dict()), "base/model.safetensors")
chosen = {"0.weight": np.array([3, 20, 63]), "1.bias": np.array([1])}
region = Region.from_indices(chosen, {"0.weight": (8, 8), "1.bias": (2,)})
write_bundle("base", region, base={"name": "base"})
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
frozen = freeze(model, "base", optimizer)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(4, 8)).square().sum().backward()
    optimizer.step()
differs = (model[0].weight != before["0.weight"]).view(-1)
assert [i for i in range(64) if not differs[i]] == [3, 20, 63], differs
save_file(dict(model.state_dict()), "trained/model.safetensors")
print(frozen.verify(), verify_saved("trained", "base"))
model[1].bias.data[1] += 1
for check in (frozen.verify, model.state_dict):
    try:
        check()
    except FreezeError:
        continue
    sys.exit("a frozen entry has moved, and nothing was said")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("model_surgeon-*.whl")
    return found


def install(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """Install the wheel and nothing else; returns the interpreter and its packages."""
    python = folder / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", folder],
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (site,) = (folder / "lib").glob("python*/site-packages")
    return python, site


def needed(distribution: importlib.metadata.Distribution, found: dict[str, importlib.metadata.Distribution]) -> None:
    """Collect what a distribution declares that it needs, and what that needs, as it is installed here."""
    for line in distribution.requires or []:
        requirement = Requirement(line)
        if (requirement.marker is None or requirement.marker.evaluate({"extra": ""})) and requirement.name not in found:
            found[requirement.name] = importlib.metadata.distribution(requirement.name)
            needed(found[requirement.name], found)


def lend(site: Path, names: Iterable[str] | None = None) -> None:
    """Link into an environment what the wheel there needs (or what is named), and nothing else installed here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    if names is None:
        (wheel,) = importlib.metadata.distributions(name="model-surgeon", path=[str(site)])
        needed(wheel, found)
    for name in names or ():
        found[name] = importlib.metadata.distribution(name)
        needed(found[name], found)
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(distribution.locate_file(top)))
    assert not (site / "pytest").exists()


def run(folder: Path, *command: object) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    environment["SURGEON_CACHE"] = str(folder / "cache")
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_freezing_from_the_wheel_beside_torch_numpy_and_safetensors_alone(wheel: Path, tmp_path: Path) -> None:
    python, site = install(wheel, tmp_path / "venv")
    lend(site, FOR_FREEZING)
    for name in ("base", "trained"):
        (tmp_path / name).mkdir()
    assert run(tmp_path, python, "-c", FREEZES) == "4 4\n"


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    assert wheel.stat().st_size <= 16e6
    names = zipfile.ZipFile(wheel).namelist()
    assert "surgeon/assets/tiny30/model.safetensors" in names
    assert "surgeon/recipes/zero_core.yaml" in names
    python, site = install(wheel, tmp_path / "venv")
    lend(site)
    surgeon = python.with_name("surgeon")
    assert "zero_core" in run(tmp_path, surgeon, "recipes")
    report = json.loads(run(tmp_path, surgeon, "apply", "zero_core", "--json", *LITTLE))
    assert report["model"]["name"] == "builtin:tiny30"
    assert len(report["perplexity"]["core-zeroed"]) == 30
    assert report["summary"]["core-zeroed"]["ratio_to_base"] > 1.5
    assert (tmp_path / "out" / "zero-core" / "variants" / "core-zeroed" / "model.safetensors").is_file()
