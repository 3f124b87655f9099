"""From recipe to region file: whole units, changes between checkpoints, single entries; each against its definition."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ModelMaker
from safetensors.torch import load_file, save_file
from test_other_scores import plain_wanda, regions_of, write_recipe

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import RecipeError
from surgeon.region.region import Region

WANDA = "{kind: wanda, power: 2, languages: [de], samples: 5, sequence_length: 24, batch_size: 2}"


def columns_of(region: Region, name: str) -> list[int]:
    """The columns that are selected, each as a whole."""
    mask = region.mask(name)
    assert (mask.all(0) | ~mask.any(0)).all()
    return np.flatnonzero(mask[0]).tolist()


def test_ssu_freezes_the_columns_of_largest_norm_times_mean_square_of_their_input(
    make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    """arXiv 2512.04844: the norm of column j times the mean of x_j squared; the top half of a matrix's columns."""
    folder = make_model("llama")
    recipe = write_recipe(
        tmp_path, folder, texts, f"  best: {{score: {WANDA}, select: {{top: 0.5, unit: column, by: l2}}}}"
    )
    planned = surgeon.plan_recipe(recipe)
    region = regions_of(recipe)["best"]
    assert planned.regions["best"].exact
    assert planned.regions["best"].entries == region.entries == region.numel // 2
    wanda = plain_wanda(folder, planned.corpus.text("de").score, 5, 24)
    weights = load_file(folder / "model.safetensors")
    assert all(len(shape) == 2 for shape in region.shapes.values())
    for name in region:
        weight = weights[name].double()
        norms = (wanda[name] / weight.abs())[0]  # of the inputs, one per column
        scores = weight.norm(dim=0) * norms**2
        order = sorted(range(len(scores)), key=lambda j: (-float(scores[j]), j))
        assert columns_of(region, name) == sorted(order[: len(scores) // 2]), name


def test_neurons_of_a_language_from_recipe_to_region(
    make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    """The whole way: the same neurons in all three matrices, and no more than were asked for."""
    score = "{kind: activation, measure: frequency, languages: [de, fr], samples: 5, sequence_length: 24}"
    own = "{{from: german, select: {{top: {}, unit: neuron, scope: global, specific: {}}}}}"
    recipe = write_recipe(
        tmp_path, make_model("llama", intermediate_size=200), texts,
        f"  german: {{score: {score}, select: {{top: 0.1, unit: neuron, scope: global, specific: de}}}}\n"
        f"  french: {own.format(0.1, 'fr')}\n"
        "  active: {from: german, select: {count: 3, unit: neuron, scope: layer}}\n"
        "  often: {from: german, select: {at_least: 0.9, unit: neuron}}\n"
        "  by-entry: {from: german, select: {at_least: 0.9}}",
    )  # fmt: skip
    found = regions_of(recipe)
    for label, region in found.items():
        chosen = [set(columns_of(region, f"model.layers.{i}.mlp.down_proj.weight")) for i in range(2)]
        for i in range(2):
            for part in ("gate", "up"):
                mask = region.mask(f"model.layers.{i}.mlp.{part}_proj.weight")
                assert set(columns_of(Region.from_masks({"t": mask.T}), "t")) == chosen[i], label
        neurons = sum(map(len, chosen))
        assert region.entries == neurons * 3 * 32
        assert label != "active" or list(map(len, chosen)) == [3, 3]
        assert label not in ("german", "french") or 0 < neurons <= 0.1 * 400
    assert found["often"] == found["by-entry"]  # a neuron's entries all score alike
    assert found["often"].entries


def test_random_units_are_whole_and_follow_the_seed(llama: Path, texts: dict[str, str], tmp_path: Path) -> None:
    spec = "{{select: {{random: 0.25, unit: column, seed: {}}}, exclude: [norm]}}"
    found = regions_of(write_recipe(tmp_path, llama, texts, f"  a: {spec.format(0)}\n  b: {spec.format(1)}"))
    assert found["a"] != found["b"]
    for region in found.values():
        assert all(len(columns_of(region, name)) == int(0.25 * shape[1]) for name, shape in region.shapes.items())


def changed_copy(folder: Path, to: Path, seed: int) -> dict[str, torch.Tensor]:
    shutil.copytree(folder, to)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor
        + torch.randn(tensor.shape, generator=generator) * (torch.rand(tensor.shape, generator=generator) < 0.5)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return tensors


def test_delta_and_talls_mask(llama: Path, texts: dict[str, str], tmp_path: Path) -> None:
    one, two = changed_copy(llama, tmp_path / "one", 1), changed_copy(llama, tmp_path / "two", 2)
    base = load_file(llama / "model.safetensors")
    merged = {name: (one[name] + two[name]) / 2 for name in base}
    shutil.copytree(llama, tmp_path / "merged")
    save_file(merged, tmp_path / "merged" / "model.safetensors", {"format": "pt"})
    found = regions_of(
        write_recipe(
            tmp_path, llama, texts,
            f"  moved: {{score: {{kind: delta, other: {tmp_path}/one}}, select: {{top: 0.02}}}}\n"
            f"  tall: {{score: {{kind: delta, other: {tmp_path}/one, merged: {tmp_path}/merged}}, "
            "select: {at_least: 0.75}}",
        )
    )  # fmt: skip
    for name in found["moved"]:
        change = (one[name].double() - base[name].double()).abs().flatten()
        order = sorted(range(len(change)), key=lambda i: (-float(change[i].float()), i))
        assert found["moved"].indices(name).tolist() == sorted(order[: int(0.02 * len(change))])
        lost = (merged[name].double() - one[name].double()).abs().flatten()
        assert found["tall"].indices(name).tolist() == [
            i for i in range(len(change)) if lost[i] == 0 or float((change[i] / lost[i]).float()) >= 0.75
        ]
    assert 0.3 < found["tall"].density() < 0.9


def test_another_checkpoint_under_the_same_name_is_another_region(
    llama: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    """Trained anew into the same folder: what the cache holds of the old one must not be taken for it."""
    recipe = write_recipe(
        tmp_path, llama, texts, f"  moved: {{score: {{kind: delta, other: {tmp_path}/one}}, select: {{top: 0.02}}}}"
    )
    changed_copy(llama, tmp_path / "one", 1)
    before = regions_of(recipe)["moved"]
    shutil.rmtree(tmp_path / "one")
    changed_copy(llama, tmp_path / "one", 2)
    after = regions_of(recipe)["moved"]
    assert before.jaccard(after) < 0.2


def test_so_many_entries_instead_of_a_share(make_model: ModelMaker, texts: dict[str, str], tmp_path: Path) -> None:
    folder = make_model("llama")
    found = regions_of(
        write_recipe(
            tmp_path, folder, texts,
            "  one: {score: {kind: magnitude}, select: {count: 1, scope: global}, include: [mlp.down]}\n"
            "  three: {from: one, select: {count: 3}, include: [mlp.down]}",
        )
    )  # fmt: skip
    checkpoint = Checkpoint.open(folder)
    arrays = {name: np.abs(checkpoint.array(name)) for name in found["one"]}
    assert found["one"].entries == 1
    name = next(name for name in found["one"] if found["one"].indices(name).size)
    assert arrays[name].reshape(-1)[found["one"].indices(name)[0]] == max(array.max() for array in arrays.values())
    for name, array in arrays.items():
        assert set(found["three"].indices(name)) == set(np.argsort(-array, axis=None)[:3])


def test_what_cannot_be_is_said_with_its_line(llama: Path, texts: dict[str, str], tmp_path: Path) -> None:
    def problem(region: str) -> str:
        with pytest.raises(RecipeError) as caught:
            surgeon.plan_recipe(write_recipe(tmp_path, llama, texts, f"  a: {region}"))
        return str(caught.value).removeprefix(str(tmp_path) + "/")

    assert "region 'a' selects nothing: none of its tensors has parts of a expert" in problem(
        "{select: {random: 0.1, unit: expert}}"
    )
    assert problem("{score: {kind: delta, other: /nowhere}, select: {top: 0.1}}").startswith("recipe.yaml:6: ")
    assert "by goes with a unit" in problem("{score: {kind: magnitude}, select: {top: 0.1, by: l2}}")
    assert "specific goes with top and a unit" in problem(f"{{score: {WANDA}, select: {{top: 0.1, specific: de}}}}")
    assert "this score knows no languages: specific needs one on text" in problem(
        "{score: {kind: magnitude}, select: {top: 0.1, unit: row, specific: de}}"
    )
    assert "give exactly one of top, bottom, random, count, at_least" in problem(
        "{score: {kind: magnitude}, select: {top: 0.1, count: 1}}"
    )
