"""A variant is made again exactly when what makes its bytes has changed, within one process as between two."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ModelMaker
from hub_server import LoopbackHub
from safetensors.numpy import load_file, save_file
from test_output import tree

import surgeon
from surgeon.api import check_files
from surgeon.checkpoint.hashing import file_stamp, is_settled
from surgeon.errors import CheckpointError
from surgeon.hub.parcel import pack
from surgeon.region.region import Region

RecipeMaker = Callable[..., Path]
RESTORED = "  cut: {operations: [{zero: core}]}"


@pytest.fixture
def donor(make_model: ModelMaker, tmp_path: Path) -> Path:
    shutil.copytree(make_model("llama", seed=9), tmp_path / "donor")
    while not is_settled(file_stamp((tmp_path / "donor" / "model.safetensors").stat())):  # till its hash is kept
        time.sleep(0.02)
    return tmp_path / "donor"


def shift_in_place(donor: Path, by: float) -> None:
    """Change all entries without touching the folder: other bytes in the same file, after the same header."""
    path = donor / "model.safetensors"
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    values = np.frombuffer(path.read_bytes()[start:], np.float32) + np.float32(by)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(values.tobytes())


def test_a_donor_that_changes_in_place_is_read_again(light_recipe: RecipeMaker, donor: Path, tmp_path: Path) -> None:
    recipe = light_recipe(**{RESTORED: f"  cut: {{operations: [{{restore: core, from: {donor}}}]}}"})
    surgeon.apply(recipe)
    folder = donor.stat().st_mtime_ns
    shift_in_place(donor, 1)
    assert donor.stat().st_mtime_ns == folder
    assert not surgeon.apply(recipe).variants["cut"].reused
    region = Region.load(tmp_path / "out" / "regions" / "core.region.safetensors")
    made, given = (load_file(at / "model.safetensors") for at in (tmp_path / "out" / "variants" / "cut", donor))
    for name in region:
        at = region.indices(name)
        assert np.array_equal(made[name].reshape(-1)[at], given[name].reshape(-1)[at])
    assert surgeon.apply(recipe).variants["cut"].reused


def test_a_donor_that_changes_during_a_run_ends_it(
    light_recipe: RecipeMaker, donor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = light_recipe(**{RESTORED: f"  cut: {{operations: [{{restore: core, from: {donor}}}]}}"})
    real = surgeon.api.verify_variants  # type: ignore[attr-defined]
    monkeypatch.setattr("surgeon.api.verify_variants", lambda run: (shift_in_place(donor, 1), real(run))[1])
    with pytest.raises(CheckpointError, match=f"{donor}: was changed while it was read"):
        surgeon.apply(recipe)
    assert not (tmp_path / "out" / "variants" / "cut").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_branch_of_the_hub_that_moves_is_looked_up_again(
    light_recipe: RecipeMaker, llama: Path, hub_here: LoopbackHub, tmp_path: Path
) -> None:
    """Both a donor and a region that stand on a branch, within one process."""
    shapes = {name: values.shape for name, values in load_file(llama / "model.safetensors").items()}
    name = next(name for name in shapes if "q_proj" in name)

    def publish(entries: list[int], seed: float) -> None:
        Region.from_indices({name: np.array(entries)}, {name: shapes[name]}).save(tmp_path / "x.safetensors")
        changed = {one: values + np.float32(seed) for one, values in load_file(llama / "model.safetensors").items()}
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        hub_here.add(
            "org/moving",
            {
                "x.region.safetensors": (tmp_path / "x.safetensors").read_bytes(),
                "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
                "config.json": (llama / "config.json").read_bytes(),
            },
        )

    recipe = light_recipe(
        **{
            "  bottom: {from: core": "  some: {file: hf://org/moving/x.region.safetensors}\n  bottom: {from: core",
            RESTORED: "  cut: {operations: [{restore: some, from: hf://org/moving}]}",
        }
    )
    for entries, by in (([1, 2], 0.5), ([3, 4, 5], 0.25)):
        publish(entries, by)
        assert not surgeon.apply(recipe).variants["cut"].reused
        before = load_file(llama / "model.safetensors")[name].reshape(-1)
        after = load_file(tmp_path / "out" / "variants" / "cut" / "model.safetensors")[name].reshape(-1)
        assert np.flatnonzero(after != before).tolist() == entries
        assert np.allclose((after - before)[entries], by, atol=1e-6)


OTHERS = {
    "how it is measured": {"tokens: 64": "tokens: 48"},
    "another variant beside": {"  control:": "  more: {operations: [{scale: bottom, by: 0.5}]}\n  control:"},
    "another region that it does not use": {"  random:": "  spare: {select: {random: 0.1, seed: 3}}\n  random:"},
}


@pytest.mark.parametrize("change", OTHERS)
def test_what_else_a_recipe_says_writes_no_variant_again(change: str, recipe: RecipeMaker, tmp_path: Path) -> None:
    surgeon.apply(recipe())
    variant = tmp_path / "out" / "variants" / "cut"
    weights = variant / "model.safetensors"
    before = weights.stat().st_ino, weights.stat().st_mtime_ns
    changed = recipe(**OTHERS[change])
    assert surgeon.apply(changed).variants["cut"].reused
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == before
    assert check_files(tmp_path / "out") > check_files(variant) > 0
    surgeon.apply(changed, output=tmp_path / "fresh")  # all else about it is as if it had been written now
    fresh = tmp_path / "fresh" / "variants" / "cut"
    told, made = ({name: data for name, data in tree(at).items() if name != "surgeon.json"} for at in (variant, fresh))
    assert told.keys() == made.keys()
    markers = [json.loads((at / "surgeon.json").read_text()) for at in (variant, fresh)]
    for marker in markers:
        del marker["recipe"]["output"]
    assert markers[0] == markers[1]
    parcel = pack(variant, "hf://org/cut")
    sent = next(item.content for item in parcel.items if item.path == "recipe.yaml")
    assert isinstance(sent, bytes)
    assert yaml.safe_load(sent)["verify"]["tokens"] == (48 if "measured" in change else 64)


def test_an_empty_region_is_refused_without_asserts_too(light_recipe: RecipeMaker, tmp_path: Path) -> None:
    changes = {
        "  random:": "  nothing: {combine: core - core}\n  random:",
        "  control:": "  a: {operations: [{zero: nothing}]}\n  control:",
    }
    command = [sys.executable, "-O", "-m", "surgeon", "apply", str(light_recipe(**changes))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: region 'nothing' is empty, so 'a' would do nothing" in done.stderr
    assert not (tmp_path / "out" / "variants").exists()
