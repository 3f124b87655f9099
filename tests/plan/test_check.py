"""Objections are made before work starts, all at once; what was edited is counted, written or not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ModelMaker
from safetensors.numpy import load_file, save_file

import surgeon
import surgeon.plan.check
import surgeon.region.patch
import surgeon.scoring
from surgeon.api import verify_checkpoint
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.diff.comparison import compare
from surgeon.errors import CheckpointError, EnvironmentFailure, InputError, RecipeError, RegionError
from surgeon.operations import Restore, Zero
from surgeon.operations.edits import Surgery
from surgeon.plan.check import most_positions
from surgeon.recipe.schema import VerifySpec
from surgeon.region.patch import Patch
from surgeon.region.region import Region
from surgeon.text.corpora import Corpus, FileLocation
from surgeon.write.staging import write_variant

RecipeMaker = Callable[..., Path]
MONOLINGUAL = {
    "  random:": "  only-de: {from: core, select: {top: 0.05, monolingual: de}}\n  random:",
    "  control:": "  weaker-de: {operations: [{zero: only-de}], write: false}\n  control:",
}


@pytest.fixture
def no_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "surgeon.scores.score_pass.ScorePass.run", lambda *args: pytest.fail("scored before the objection")
    )


def test_every_variant_reports_what_it_edits_and_not_what_the_plan_allowed(
    recipe: RecipeMaker, llama: Path, tmp_path: Path
) -> None:
    report = surgeon.apply(recipe(**MONOLINGUAL))
    source = load_file(llama / "model.safetensors")
    for variant, label in (("cut", "core"), ("weaker-de", "only-de"), ("control", "bottom")):
        region = Region.load(tmp_path / "out" / "regions" / f"{label}.region.safetensors")
        removed = np.concatenate([source[name].reshape(-1)[region.indices(name)].astype(np.float64) for name in region])
        found = report.variants[variant]
        assert found.entries == region.entries == removed.size
        assert found.changed == np.count_nonzero(removed)
        assert found.norm_removed == pytest.approx(float(np.sqrt((removed**2).sum())), rel=1e-12)
    made = surgeon.plan_recipe(recipe(**MONOLINGUAL))
    assert report.variants["weaker-de"].entries < made.variants["weaker-de"].entries_at_most  # at most, says the plan


def test_a_region_that_turns_out_empty_is_an_error_before_anything_is_written(
    recipe: RecipeMaker, tmp_path: Path
) -> None:
    changes = {
        "  random:": "  nothing: {combine: core - core}\n  nor-this: {combine: bottom - bottom}\n  random:",
        "  control:": "  a: {operations: [{zero: nothing}], write: false}\n"
        "  b: {operations: [{zero: core}, {zero: nor-this}]}\n  control:",
    }
    with pytest.raises(RegionError) as caught:
        surgeon.apply(recipe(**changes))
    assert "region 'nothing' is empty" in str(caught.value)
    assert "region 'nor-this' is empty" in str(caught.value)
    assert not (tmp_path / "out" / "variants").exists()
    unused = {"  random:": "  nothing: {combine: core - core}\n  random:"}
    assert surgeon.apply(recipe(**unused)).regions["nothing"].entries == 0  # a finding, where nobody builds on it


def shifted(folder: Path, target: Path, by: float) -> Path:
    """A copy of a model in which two entries of one tensor are others."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][0, :2] += by
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("kind", ["measured only", "point of a sweep"])
def test_a_patch_for_another_base_is_refused_also_where_nothing_is_written(
    kind: str, llama: Path, texts: dict[str, str], tmp_path: Path, no_scoring: None
) -> None:
    patch = tmp_path / "x.patch.safetensors"
    compare(llama, shifted(llama, tmp_path / "b", 1.0), save_patch=patch)
    variant: dict[str, Any] = {"operations": [{"restore": "changed", "from": str(patch)}], "write": False}
    if kind == "point of a sweep":
        variant["sweep"] = {"which": {"set": "operations.0.from", "to": [str(patch)]}}
    recipe = tmp_path / "r.yaml"

    def write(base: Path) -> Path:
        data = {
            "version": 1, "name": "replay", "model": str(base), "corpus": texts, "output": str(tmp_path / "out"),
            "regions": {
                "changed": {"file": str(patch)},
                "core": {"score": {"kind": "grad_param", "languages": ["de"]}, "select": {"top": 0.1}},
            },
            "variants": {"again": variant}, "verify": {"tokens": 20, "window": 16},
        }  # fmt: skip
        recipe.write_text(yaml.safe_dump(data))
        return recipe

    with pytest.raises(CheckpointError, match="was made for another base"):
        surgeon.apply(write(shifted(llama, tmp_path / "c", 3.0)))
    write(llama)
    data = yaml.safe_load(recipe.read_text())
    del data["regions"]["core"]
    recipe.write_text(yaml.safe_dump(data))
    assert next(iter(surgeon.apply(recipe).variants.values())).changed == 2


def test_replaying_a_patch_reads_its_header_a_fixed_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers: list[Path] = []
    real = surgeon.region.patch.read_header
    reads = []
    for count in (3, 30):
        folder = tmp_path / str(count)
        folder.mkdir()
        save_file({f"t{i}": np.ones(8, np.float32) for i in range(count)}, folder / "a.safetensors")
        save_file({f"t{i}": np.full(8, 2, np.float32) for i in range(count)}, folder / "b.safetensors")
        compare(folder / "a.safetensors", folder / "b.safetensors", save_patch=folder / "x.patch.safetensors")
        headers.clear()
        with monkeypatch.context() as patching:
            patching.setattr(surgeon.region.patch, "read_header", lambda path: headers.append(path) or real(path))
            region = Patch.load(folder / "x.patch.safetensors").region
            operation = Restore.model_validate({"restore": "r", "from": str(folder / "x.patch.safetensors")})
            base = Checkpoint.open(folder / "a.safetensors")
            for name in base.tensors:
                assert Surgery(base, [operation], {"r": region}).edit(name).values.tolist() == [2] * 8
        reads.append(len(headers))
    assert reads[0] == reads[1]


def test_a_window_longer_than_the_positions_is_told_by_line_before_scoring(
    recipe: RecipeMaker, make_model: ModelMaker, llama: Path, no_scoring: None
) -> None:
    gpt2 = make_model("gpt2")
    assert most_positions(Checkpoint.open(gpt2)) == 64
    assert most_positions(Checkpoint.open(make_model("opt"))) == 64  # its table has two rows more
    assert most_positions(Checkpoint.open(llama)) is None  # computes its positions, however many
    changes = {str(llama): str(gpt2), "window: 32": "window: 65", "tokens: 64": "tokens: 70"}
    changes["sequence_length: 32"] = "sequence_length: 80"
    with pytest.raises(RecipeError) as caught:
        surgeon.plan_recipe(recipe(**changes))
    assert [problem.what for problem in caught.value.problems] == [
        f"{length} tokens at a time are more than the 64 positions of {gpt2}" for length in (80, 65)
    ]
    assert [Path(item.where).name for item in caught.value.problems] == ["recipe.yaml:7", "recipe.yaml:16"]
    within = {str(llama): str(gpt2), "window: 32": "window: 256"}
    surgeon.plan_recipe(recipe(**within))  # no more than the 64 tokens that are measured stand in a window


def test_verify_refuses_such_a_window_too(make_model: ModelMaker, texts: dict[str, str]) -> None:
    corpus = Corpus("c", {"de": FileLocation(Path(texts["de"]))})
    folder = make_model("gpt2")
    with pytest.raises(InputError, match=r"--window 65: 65 tokens at a time are more than the 64 positions"):
        verify_checkpoint(folder, corpus=corpus, spec=VerifySpec(window=65))
    with pytest.raises(InputError, match="--device nowhere: no such device"):
        verify_checkpoint(folder, corpus=corpus, spec=VerifySpec(window=16), device="nowhere")


def test_the_device_and_the_room_on_the_disk_are_looked_at_before_scoring(
    recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_scoring: None
) -> None:
    with pytest.raises(InputError, match="--device nowhere: no such device"):
        surgeon.apply(recipe(), device="nowhere")
    monkeypatch.setattr(surgeon.plan.check.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(EnvironmentFailure, match=r"0 MB free, but the variants to write need"):
        surgeon.apply(recipe())
    assert not (tmp_path / "out").exists()
    surgeon.plan_recipe(recipe())  # a plan is shown all the same


def test_a_full_disk_is_no_objection_to_variants_that_are_there(
    recipe: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    surgeon.apply(recipe())
    monkeypatch.setattr(surgeon.plan.check.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert surgeon.apply(recipe()).variants["cut"].reused


def test_edits_are_counted_once_for_tensors_of_several_operations(llama: Path, tmp_path: Path) -> None:

    base, name = Checkpoint.open(llama), "model.layers.0.mlp.down_proj.weight"
    shape = base.tensors[name].shape
    regions = {
        "one": Region.from_indices({name: np.arange(0, 10)}, {name: shape}),
        "two": Region.from_indices({name: np.arange(5, 20)}, {name: shape}),
    }
    counted = Surgery(base, [Zero(zero="one"), Zero(zero="two")], regions).count()
    assert (counted.entries, counted.changed) == (20, 20)
    write_variant(base, [Zero(zero="one"), Zero(zero="two")], regions, tmp_path / "v")
    total = compare(llama, tmp_path / "v").checkpoints
    assert total is not None
    assert (total.total.changed, total.total.l2) == (20, pytest.approx(counted.norm, rel=1e-12))
