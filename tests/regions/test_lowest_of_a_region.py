"""Controls of the lowest score go by the scores that their region goes by, and the plan says when that keeps files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import with_pictures
from safetensors import safe_open

import surgeon
from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.store import cache_folder
from surgeon.errors import RecipeError
from surgeon.plan.needs import stores
from surgeon.region.region import Region

SCORE = "{kind: grad_param, languages: [de, fr], samples: 5, sequence_length: 24}"
REGIONS = """\
  core: {score: SCORE, select: {top: 0.03}}
  german: {from: core, select: {top: 0.05, monolingual: de}}
  low: {control: {of: german, draw: bottom}}
  low-of-core: {control: {of: core, draw: bottom}}
"""
SPANNING = """\
  everywhere: {score: SCORE, select: {top: 0.02, scope: global}}
  low: {control: {of: everywhere, draw: bottom}}
"""


def write(folder: Path, model: Path, texts: dict[str, str], regions: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"""\
version: 1
name: r
model: {model}
corpus: {{de: {texts["de"]}, fr: {texts["fr"]}}}
regions:
{regions.replace("SCORE", SCORE)}output: {folder / "out"}
""")
    return path


def score_files() -> dict[str, Path]:
    found = {}
    for path in (cache_folder() / "scores").glob("*.safetensors"):
        with safe_open(path, "np") as file:
            found[file.metadata()["language"]] = path
    return found


def lowest(scores: np.ndarray, values: np.ndarray, count: int) -> list[int]:
    there = np.flatnonzero(values.reshape(-1) != 0)
    order = np.argsort(scores.reshape(-1)[there], kind="stable")
    return sorted(there[order[:count]].tolist())


@pytest.mark.parametrize("in_one_pass", [False, True])
def test_of_a_languages_own_region_by_that_languages_scores(
    in_one_pass: bool, llama: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, llama, texts, REGIONS)
    surgeon.score(path)  # whose files are looked at
    files, checkpoint = score_files(), Checkpoint.open(llama)
    assert files.keys() == {"de", "fr"}
    if in_one_pass:
        monkeypatch.setenv("SURGEON_CACHE", str(with_pictures(tmp_path / "other")))
        monkeypatch.setattr("surgeon.plan.needs.SHARE_OF_DISK", 0.0)
        surgeon.apply(path)
        assert score_files() == {}
    german, low, of_core = (
        Region.load(tmp_path / "out/regions" / f"{name}.region.safetensors")
        for name in ("german", "low", "low-of-core")
    )
    with safe_open(files["de"], "np") as de, safe_open(files["fr"], "np") as fr:
        for name in german:
            own, both = de.get_tensor(name), de.get_tensor(name) + fr.get_tensor(name)
            values = checkpoint.array(name)
            assert low.indices(name).tolist() == lowest(own, values, german[name].entries), name
            assert of_core.indices(name).tolist() == lowest(both, values, of_core[name].entries), name


def test_scores_that_a_control_needs_once_more_are_kept_and_the_plan_says_so(
    llama: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.plan.needs.SHARE_OF_DISK", 0.0)
    path = write(tmp_path, llama, texts, SPANNING)
    told = stores(plan_recipe(path))
    surgeon.apply(path)
    taken = sum(file.stat().st_size for file in score_files().values())
    assert len(score_files()) == 2
    assert told.not_kept == 0
    assert told.kept <= taken <= told.kept + 20_000  # headers
    region, low = (
        Region.load(tmp_path / "out/regions" / f"{name}.region.safetensors") for name in ("everywhere", "low")
    )
    with safe_open(score_files()["de"], "np") as de, safe_open(score_files()["fr"], "np") as fr:
        for name in region:
            both, values = de.get_tensor(name) + fr.get_tensor(name), Checkpoint.open(llama).array(name)
            assert low.indices(name).tolist() == lowest(both, values, region[name].entries), name


def test_a_kind_of_score_that_nobody_knows_is_an_error(llama: Path, texts: dict[str, str], tmp_path: Path) -> None:
    path = write(tmp_path, llama, texts, "  core: {score: {kind: grad_parm, languages: [de]}, select: {top: 0.01}}\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:6.*grad_parm"):
        plan_recipe(path)
