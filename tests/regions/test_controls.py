"""Controls hold no zeros, are of the same tensors and count, or of the same norm, and follow their seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import ModelMaker
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import RecipeError
from surgeon.region.dimensions import random_like
from surgeon.region.overlap import likenesses
from surgeon.region.region import Region
from surgeon.regions.control import Control, Draw
from surgeon.report.regions import region_report

DTYPES = st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16])


@st.composite
def tensors(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values of few sizes, so that there are ties, about a third of them zeros; and scores, with ties too."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 9)))
    numel = math.prod(shape)
    sizes = st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 2.0, -3.0]), min_size=numel, max_size=numel)
    values = np.array(draw(sizes)).reshape(shape).astype(draw(DTYPES))
    scored = st.lists(st.integers(0, 4), min_size=numel, max_size=numel)
    return values, np.array(draw(scored), np.float32).reshape(shape)


def plainly(values: np.ndarray[Any, Any], scores: np.ndarray[Any, Any], draw: str) -> list[int]:
    """All that are not zero, in the order in which they are taken."""
    flat, keys = values.astype(np.float64).reshape(-1).tolist(), scores.reshape(-1).tolist()
    there = [i for i, value in enumerate(flat) if value != 0]
    return sorted(there, key=lambda i: (keys[i] if draw == "bottom" else -abs(flat[i]), i))


@given(tensor=tensors(), draw=st.sampled_from(["bottom", "magnitude"]), count=st.integers(0, 60))
def test_ranked_controls_are_those_of_a_plain_sort(tensor: Any, draw: Draw, count: int) -> None:
    values, scores = tensor
    found = Control(of="r", draw=draw).drawn("t", values, count, scores=scores)
    assert found.tolist() == sorted(plainly(values, scores, draw)[:count])


@given(tensor=tensors(), draw=st.sampled_from(["bottom", "magnitude"]), share=st.floats(0, 1.2))
def test_matched_controls_come_as_near_to_the_norm_as_their_order_allows(tensor: Any, draw: Draw, share: float) -> None:
    values, scores = tensor
    squares = values.astype(np.float64).reshape(-1) ** 2
    target = share * squares.sum()
    found = Control(of="r", draw=draw).drawn("t", values, 0, scores=scores, removed=target)
    order = plainly(values, scores, draw)
    assert found.tolist() == sorted(order[: found.size])
    misses = [abs(squares[order[:count]].sum() - target) for count in range(len(order) + 1)]
    assert misses[found.size] == pytest.approx(min(misses), abs=1e-9)


@given(tensor=tensors(), count=st.integers(0, 60), seed=st.integers(0, 5))
def test_random_controls_hold_no_zero_and_as_many_as_asked_for(tensor: Any, count: int, seed: int) -> None:
    values, _ = tensor
    found = Control(of="r", seed=seed).drawn("t", values, count)
    there = np.flatnonzero(values.astype(np.float64).reshape(-1))
    assert set(found.tolist()) <= set(there.tolist())
    assert found.size == min(count, there.size)
    assert found.tolist() == sorted(set(found.tolist()))
    assert found.tolist() == Control(of="r", seed=seed).drawn("t", values, count).tolist()


def test_random_controls_follow_seed_and_name_and_are_even() -> None:
    values = np.where(np.arange(4000) % 2, 1.0, 0.0)
    labels = (("a", 0), ("a", 1), ("b", 0))
    found = [Control(of="r", seed=seed).drawn(name, values, 500).tolist() for name, seed in labels]
    assert len({tuple(indices) for indices in found}) == 3
    assert all(200 < sum(index < 2000 for index in indices) < 300 for indices in found)


def test_two_random_regions_of_one_recipe_are_independent_draws(llama: Path, tmp_path: Path) -> None:
    """They share what chance makes them share, by whatever way they are drawn; the same recipe draws the same."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 1\nname: r\nmodel: {llama}\nregions:\n"
        "  of: {select: {random: 0.2}}\n"
        "  a: {select: {random: 0.1}}\n"
        "  b: {select: {random: 0.1}}\n"
        "  c: {control: {of: of}}\n"
        "  d: {control: {of: of}}\n"
        "  e: {select: {random: 0.5, unit: neuron}}\n"
        "  f: {select: {random: 0.5, unit: neuron}}\n"
        "output: out\n"
    )
    made = []
    for output in ("one", "two"):
        files = surgeon.score(recipe, output=tmp_path / output, device="cpu")
        made.append({name: Region.load(path) for name, path in files.items()})
    assert made[0] == made[1]
    found = likenesses(made[0])
    for pair in (("a", "b"), ("c", "d"), ("of", "a")):
        assert found[pair].jaccard == pytest.approx(found[pair].by_chance, abs=0.03)
    assert made[0]["e"] != made[0]["f"]


def with_zeros(folder: Path) -> Path:
    """Make three in four entries of every matrix zero."""
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.dim() == 2:
            tensor.view(-1)[::4] = 0
            tensor.view(-1)[1::4] = 0
            tensor.view(-1)[2::4] = 0
        weights[name] = tensor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


CONTROLS = """\
  core2: {from: core, select: {top: 0.02}, exclude: [norm]}
  bottom: {control: {of: core2, draw: bottom}}
  largest: {control: {of: core2, draw: magnitude}}
  drawn: {control: {of: core2}}
  weighed: {control: {of: core2, matched: l2, seed: 4}}
"""


def test_a_recipe_compares_like_with_like(
    recipe: Callable[..., Path], llama: Path, make_model: ModelMaker, tmp_path: Path
) -> None:
    folder = with_zeros(make_model("llama", seed=21))
    labels = ("core2", "bottom", "largest", "drawn", "weighed")
    changes = {
        str(llama): str(folder),
        "  bottom: {from: core, select: {bottom: 0.05}, exclude: [norm]}\n": CONTROLS,
        "  control: {operations: [{zero: bottom}], write: false}\n": "".join(
            f"  {label}-zeroed: {{operations: [{{zero: {label}}}], write: false}}\n" for label in labels
        ),
    }
    made = surgeon.plan_recipe(recipe(**changes))
    report = surgeon.apply(recipe(**changes))
    found = {label: report.variants[f"{label}-zeroed"] for label in labels}
    for label in ("bottom", "largest", "drawn"):
        assert found[label].entries == found[label].changed == found["core2"].entries
        assert made.regions[label].entries == found["core2"].entries
    norms = {label: variant.norm_removed or 0.0 for label, variant in found.items()}
    assert norms["largest"] > norms["core2"] > norms["drawn"] > norms["bottom"] > 0
    assert norms["weighed"] == pytest.approx(norms["core2"], rel=0.02)
    assert found["weighed"].entries > found["core2"].entries
    files = tmp_path / "out" / "regions"
    regions = {label: Region.load(files / f"{label}.region.safetensors") for label in labels}
    source = Checkpoint.open(folder)
    for label in labels[1:4]:
        for name in regions["core2"]:
            assert regions[label][name].entries == regions["core2"][name].entries
            assert (source.array(name).reshape(-1)[regions[label].indices(name)] != 0).all()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["seeds"] == {"random": 7, "drawn": 0, "weighed": 4}
    again = surgeon.apply(tmp_path / "out" / "recipe.yaml", output=tmp_path / "again")
    assert again.variants["weighed-zeroed"] == report.variants["weighed-zeroed"]


BOTTOM = "  bottom: {from: core, select: {bottom: 0.05}, exclude: [norm]}"


def test_the_lowest_scores_need_a_score(recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="region 'random' is not selected by a score: `draw: bottom` needs one"):
        surgeon.plan_recipe(recipe(**{BOTTOM: "  bottom: {control: {of: random, draw: bottom}}"}))
    with pytest.raises(RecipeError, match="no region 'cor'; did you mean 'core'"):
        surgeon.plan_recipe(recipe(**{BOTTOM: "  bottom: {control: {of: cor}}"}))


def test_seeds_are_swept_and_told_with_mean_and_range(recipe: Callable[..., Path]) -> None:
    changes = {
        BOTTOM: "  drawn: {control: {of: core}}",
        "  control: {operations: [{zero: bottom}], write: false}": "  drawn-zeroed: {operations: [{zero: drawn}], "
        "sweep: {share: {set: regions.core.select.top, to: [0.05, 0.1]}, "
        "seed: {set: regions.drawn.control.seed, to: [0, 1, 2]}}}",
    }
    report = surgeon.apply(recipe(**changes))
    sweep = report.sweeps["drawn-zeroed"]
    assert sweep.points == {
        f"drawn-zeroed-{share}-{seed}": [share, seed] for share in (0.05, 0.1) for seed in (0, 1, 2)
    }
    assert [group.values for group in sweep.over_seeds] == [[0.05], [0.1]]
    for group in sweep.over_seeds:
        assert group.points == [f"drawn-zeroed-{group.values[0]}-{seed}" for seed in (0, 1, 2)]
        ratios = [report.summary[point].ratio_to_base for point in group.points]
        assert len(set(ratios)) == 3
        assert (group.low, group.high) == (min(ratios), max(ratios))
        assert group.mean == pytest.approx(math.prod(ratios) ** (1 / 3))


def test_a_random_draw_of_the_same_counts_is_the_reference_for_crowding() -> None:
    """Few entries crowd by chance: the fullest hundredth of the lines holds several times a hundredth of them."""
    generator = np.random.default_rng(3)
    mask = generator.random((200, 300)) < 0.01
    mask[[7, 9]] = generator.random((2, 300)) < 0.5
    region = Region.from_masks({"model.layers.0.mlp.down_proj.weight": mask})
    name = next(iter(region))
    drawn = random_like(region)(name)
    assert drawn.size == region[name].entries
    report = region_report(region, {}, "top")
    at = report.spread_at.index(0.01)
    by_row = np.sort(np.bincount(drawn // 300, minlength=200))[::-1]
    assert report.chance["mlp.down"].rows[at] == pytest.approx(by_row[:2].sum() / by_row.sum(), abs=1e-6)
    assert 0.01 < report.chance["mlp.down"].rows[at] < 0.05 < report.spreads["mlp.down"].rows[at]
