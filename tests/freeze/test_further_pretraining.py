"""Claim 5's example, run for a few steps: what it trains, what it puts back, what it measures and draws."""

from __future__ import annotations

import importlib.util
import json
import lzma
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import with_pictures
from freezing import compare, inside_by_diff, saved_state
from measured import measure_variants

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.progress import Progress
from surgeon.region.region import Region
from surgeon.report.charts import SERIES
from surgeon.report.drawing import PALETTE
from surgeon.text.corpora import Corpus, FileLocation

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
ROOT = Path(__file__).parents[2]
OPTIONS = ["--seeds", "0", "--steps", "2", "--measure-at", "1", "--rows", "1", "--tokens", "16"]


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(example: Any, *arguments: str | Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["example", *map(str, arguments)])
        example.main()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which both recipes' own paths hold: the bundles, and two steps of training with each arm."""
    folder = tmp_path_factory.mktemp("claim5")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SURGEON_CACHE", str(with_pictures(folder / "cache")))
        quick = [f"regions.core-1.score.{key}" for key in ("samples=1", "sequence_length=32", "languages=[ar, zh]")]
        surgeon.apply(ROOT / "recipes/paper/claim5_freeze.yaml", overrides=quick, jobs=1)
        run(load_example("further_pretraining"), "out/claim5", *OPTIONS)
        yield folder


def lines(here: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (here / "out/claim5/curves.jsonl").read_text().splitlines()]


def test_every_arm_is_measured_and_nothing_is_done_twice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(line["arm"], line["step"], line["reverted"]) for line in lines(here)]
    arms = ["core-1", "core-5", "random-5"]
    expected = {("nothing", step, back) for step in (1, 2) for back in (None, *arms)} | {("nothing", 0, None)}
    assert set(found) == expected | {(arm, step, None) for arm in arms for step in (1, 2)}
    assert len(found) == len(set(found))
    monkeypatch.chdir(here)
    run(load_example("further_pretraining"), "out/claim5", *OPTIONS)
    assert len(lines(here)) == len(found)


@pytest.mark.parametrize("arm", ["core-1", "core-5", "random-5"])
def test_frozen_arms_keep_their_region_and_the_free_one_does_not(here: Path, arm: str) -> None:
    base, trained = here / "out/claim5/variants" / arm, here / "out/claim5/trained"
    entries = Region.load(base / "freeze/region.safetensors").entries
    assert inside_by_diff(base, trained / f"{arm}-0.0003-0") == (entries, 0)
    assert compare(base, saved_state(trained / f"{arm}-0.0003-0"))[1] > 1_000_000
    # The entries of the core are no zeros, so that decay and gradient move them.
    assert inside_by_diff(base, trained / "nothing-0.0003-0")[1] > 0.5 * entries


def test_reversion_by_recipe_is_what_the_example_measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    surgeon.apply(ROOT / "recipes/paper/claim5_reversion.yaml", overrides=["verify.tokens=8"], jobs=1)
    written = here / "out/claim5-reversion/variants/core-5-put-back"
    free, base = (saved_state(here / "out/claim5" / name) for name in ("trained/nothing-0.0003-0", "variants/core-5"))
    region = Region.load("out/claim5/variants/core-5/freeze/region.safetensors")
    for name, tensor in saved_state(written).items():
        mask = region.mask(name) if name in region else np.zeros(tensor.shape, dtype=np.bool_)
        expected = np.where(mask, base[name].float().numpy(), free[name].numpy())
        assert np.array_equal(tensor.numpy(), expected), name
    line = next(line for line in lines(here) if line["reverted"] == "core-5" and line["step"] == 2)
    stack = make_stack(load_model(Checkpoint.open(written), "float32"))
    _, texts = load_example("further_pretraining").prepare(stack.loaded.tokenizer, {}, "zh", 16)
    again = measure_variants(stack, [Variant("base")], texts["declaration"], 4, Progress())["base"]
    for code in ("zh", "en"):
        assert math.isclose(again[code].log_perplexity, line["nats_per_token"]["declaration"][code], abs_tol=2e-5)


def test_table_and_figure(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = here / "claim5.svg"
    run(load_example("further_pretraining_figure"), here / "out/claim5/curves.jsonl", "--figure", figure)
    rows = {row.split("|")[1].strip(): row.split("|") for row in capsys.readouterr().out.splitlines() if "|" in row}
    at = {(line["arm"], line["step"], line["reverted"]): line["nats_per_token"]["declaration"] for line in lines(here)}
    base, free, frozen = (at[key] for key in (("nothing", 0, None), ("nothing", 2, None), ("core-5", 2, None)))
    others = sorted(set(base) - {"zh"})
    forgotten = [sum(after[code] - base[code] for code in others) / 29 for after in (free, frozen)]
    assert rows["core-5"][2].startswith(f" {math.exp(frozen['zh'] - base['zh']):.3f} ")
    assert rows["core-5"][3].startswith(f" {math.exp(forgotten[1]):.3f} ")
    assert rows["core-5"][4].startswith(f" {100 * (1 - forgotten[1] / forgotten[0]):.1f} %")
    run(load_example("further_pretraining_figure"), here / "out/claim5/curves.jsonl", "--against", "random-5")
    rows = {row.split("|")[1].strip(): row.split("|") for row in capsys.readouterr().out.splitlines() if "|" in row}
    control = sum(at["random-5", 2, None][code] - base[code] for code in others) / 29
    assert rows["core-5"][4].startswith(f" {100 * (1 - forgotten[1] / control):.1f} %")
    assert rows["random-5"][4].strip() == ""
    drawing = ElementTree.fromstring(figure.read_text())
    colours = {PALETTE[name][0] for name in SERIES}
    markers = [element for element in drawing.iter() if element.tag.endswith("path") and element.get("fill") in colours]
    assert len(markers) == 6 + 2 * 4 * 3 + 5 * 2  # legend; two panels of four arms; one of five without step 0


def test_a_corpus_is_split_into_text_to_measure_on_and_text_to_train_on(tmp_path: Path) -> None:
    example = load_example("further_pretraining")
    paragraphs = [f"{i} " + "ü" * 998 for i in range(10)]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/zh.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    (tmp_path / "corpus/es.txt.xz").write_bytes(lzma.compress("\n".join(paragraphs[::-1]).encode()))
    halves = example.read_corpus(tmp_path / "corpus", tmp_path / "out/texts")
    for code, expected in (("zh", paragraphs), ("es", paragraphs[::-1])):
        held_out, training = halves[code]
        assert held_out.splitlines() == expected[:4]
        assert training.splitlines() == expected[4:]
        for_recipes = Corpus("left", {code: FileLocation(tmp_path / f"out/texts/{code}.txt")}).text(code)
        assert for_recipes.evaluate == held_out
        assert training.startswith(for_recipes.score)
