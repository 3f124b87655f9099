"""Every shipped recipe is planned, and those on the builtin model are run, on less text than they ask for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

import surgeon
from surgeon.api import copy_recipe, plan_recipe, shipped_recipes
from surgeon.errors import InputError
from surgeon.freeze.bundle import Bundle
from surgeon.operations import Noise
from surgeon.recipe.reading import load_recipe
from surgeon.region.mask import encode_mask
from surgeon.region.region import Region
from surgeon.text.corpora import builtin_corpus

# Claim 5 is run by test_further_pretraining.py: its reversion starts from what an example has trained.
NAMES = [name for name in shipped_recipes() if name != "paper/claim5_reversion"]
TEXTS = {name: yaml.safe_load(shipped_recipes()[name].read_text(encoding="utf-8")) for name in NAMES}
BUILTIN = [name for name in NAMES if TEXTS[name]["model"] == "builtin:tiny30" and name != "paper/claim5_freeze"]
# They take what training left. `make methods` trains, and runs all of the methods at full size; here one runs.
TRAINED = (
    "methods/stitch",
    "methods/tall",
    "methods/layers",
    "methods/compare_scores",
    "methods/smollm2/compare_scores",
)
BUILTIN = [name for name in BUILTIN if not name.startswith("methods/") or name == "methods/super_weight"]
FEW = {"ar", "en", "sw", "zh"}  # languages to measure, of all but one recipe
# The first variant does more damage than the second, however small the sample.
WORSE = {
    "zero_core": ("core-zeroed", "random-zeroed-0"),
    "sweep": ("zeroed-core-0.01", "zeroed-random-0.01"),
    "scores": ("wanda", "random"),
    "paper/claim1": ("core-1-zeroed", "random-1-zeroed-0"),
    "paper/claim2": ("fullest-zeroed", "others-zeroed"),
    "paper/claim3": ("recurring-times-4", "ordinary-times-4"),
}


def test_there_are_recipes_to_run() -> None:
    assert set(WORSE) <= set(BUILTIN)
    assert len(BUILTIN) < len(NAMES)


def test_none_is_copied_under_a_name_that_none_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no shipped recipe 'zero_cor'; did you mean 'zero_core'\?$"):
        copy_recipe("zero_cor", tmp_path)
    with pytest.raises(InputError, match="no shipped recipe 'qqqq'; known: "):
        copy_recipe("qqqq", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what methods take of training, each the builtin model with noise of its own."""
    folder, base = tmp_path_factory.mktemp("trained"), surgeon.Checkpoint.open("builtin:tiny30")
    shapes = {info.name: info.shape for info in base.tensors.values()}
    everything = Region(shapes, lambda name: encode_mask(np.ones(shapes[name], dtype=np.bool_)))
    for seed, name in enumerate(("stitch/zh", "stitch/es", "smollm2-zh")):
        rate = "0.0001" if name == "smollm2-zh" else "0.0003"
        noise = Noise(noise="everything", relative=0.01, seed=seed)
        surgeon.write_variant(
            base, [noise], {"everything": everything}, folder / f"out/{name}/trained/nothing-{rate}-0"
        )
    (folder / "out/stitch/merged/variants").mkdir(parents=True)
    (folder / "out/stitch/merged/variants/averaged").symlink_to(folder / "out/stitch/zh/trained/nothing-0.0003-0")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_planned(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for models whose weights are not shipped, on the builtin model; see also test_family_recipes.py."""
    changed = []
    if name == "methods/super_experts":  # it has no experts either
        changed = [f"regions.{region}.select.unit=neuron" for region in ("experts", "random")]
    if name == "methods/smollm2/super_weight":
        changed = ["variants.spike-put-back.operations.1.from=builtin:tiny30"]
    if name == "paper/smollm2/claim3":  # one entry of one vector, of a deeper and wider model
        vector = "model.layers.3.input_layernorm.weight"
        vectors = [f"regions.ordinary-entry{i}.include.0={vector}" for i in ("", "-2", "-3")]
        shares = [f"regions.ordinary-entry{i}.select.random=0.005" for i in ("", "-2", "-3")]
        changed = [f"regions.recurring-entry.entries.0={{tensor: {vector}, index: [171]}}", *vectors, *shares]
    if name in TRAINED:
        monkeypatch.chdir(request.getfixturevalue("trained"))
    made = plan_recipe(name, overrides=["model=builtin:tiny30", *changed])
    assert made.regions
    assert all(region.entries > 0 for region in made.regions.values())
    assert made.variants
    if name.startswith("paper/"):
        frozen = {label for label, variant in made.recipe.variants.items() if variant.freeze is not None}
        assert {label for label, variant in made.variants.items() if variant.bytes_to_write} == frozen


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILTIN)
def test_it_runs(name: str, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGEON_CACHE", str(shared_cache))
    recipe = load_recipe(shipped_recipes()[name]).recipe
    scored = [label for label, region in TEXTS[name]["regions"].items() if "languages" in region.get("score", {})]
    less = [f"regions.{label}.score.samples=4" for label in scored]
    if recipe.verify is not None:
        less += ["verify.tokens=48", *([] if name == "zero_core" else [f"verify.languages=[{', '.join(sorted(FEW))}]"])]
    report = surgeon.apply(name, output=tmp_path / "out", overrides=less, jobs=1)
    assert set(report.regions) == set(TEXTS[name]["regions"])
    for label, region in report.regions.items():
        assert Region.load(tmp_path / "out" / "regions" / f"{label}.region.safetensors").entries == region.entries > 0
    for label, variant in report.variants.items():
        assert variant.written == (tmp_path / "out" / "variants" / label).is_dir()
        if label in recipe.variants and recipe.variants[label].freeze is not None:
            assert Bundle.load(tmp_path / "out" / "variants" / label).tensors
    if recipe.verify is None:
        return
    assert set(report.perplexity) == {"base", *report.variants}
    for measured in report.perplexity.values():
        assert set(measured) == (set(builtin_corpus("udhr30").languages) if name == "zero_core" else FEW)
        assert all(math.isfinite(item.nll) and item.nll > 0 and item.tokens > 0 for item in measured.values())
    assert (tmp_path / "out" / "report.html").is_file()
    if name in WORSE:
        worse, better = (report.summary[label].log_geometric_mean_perplexity for label in WORSE[name])
        assert worse > better
