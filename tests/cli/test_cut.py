"""`surgeon cut`: the main job on a model of one's own without a recipe, by the same path as `apply`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.cli import app
from surgeon.plan.first_cut import FirstCut, rows_within
from surgeon.plan.needs import Shape
from surgeon.recipe.reading import load_recipe
from surgeon.recipe.schema import Recipe
from surgeon.region.region import Region
from surgeon.report.data import Report
from surgeon.report.figures import figures

LITTLE = ["--set", "verify.tokens=64", "--set", "verify.languages=[ar, en]", "--set", "regions.core.score.samples=2"]


@pytest.fixture(scope="module")
def done(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a cut."""
    out = tmp_path_factory.mktemp("cut") / "out"
    arguments = ["cut", str(llama), "--top", "0.02", "--languages", "de,fr", "--output", str(out), *LITTLE]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "Zeroing 2 % of the decoder's weights" in result.stdout.replace("\xa0", " ")
    return out


def test_a_cut_measures_the_core_beside_controls_of_its_size(done: Path, llama: Path) -> None:
    report = Report.load(done)
    assert report.model.name == str(llama)
    assert {item.language for item in report.scores} == {"de", "fr"}
    cut = report.variants["core-zeroed"]
    assert cut.written
    controls = [name for name in report.variants if name != "core-zeroed"]
    assert {name.partition("-")[0] for name in controls} == {"bottom", "largest", "random"}
    assert {report.variants[name].entries for name in controls} == {cut.entries}
    assert list(report.perplexity["core-zeroed"]) == ["ar", "en"]
    region, checkpoint = Region.load(done / "regions" / "core.region.safetensors"), Checkpoint.open(llama)
    assert all(region[name].entries == int(0.02 * checkpoint.tensors[name].numel) for name in region)
    assert (done / "report.html").is_file()


def test_the_recipe_that_it_ran_is_left_and_gives_the_same_again(done: Path, tmp_path: Path) -> None:
    """Byte for byte; `score` is `apply` up to the regions, and the rest of the recipe is that of the report."""
    again = CliRunner().invoke(
        app, ["score", str(done / "recipe.yaml"), "--output", str(tmp_path / "again")], catch_exceptions=False
    )
    assert again.exit_code == 0
    for name in ("core", "bottom", "largest", "random"):
        path = f"regions/{name}.region.safetensors"
        assert (tmp_path / "again" / path).read_bytes() == (done / path).read_bytes()
    assert load_recipe(done / "recipe.yaml").as_written == Recipe.model_validate(Report.load(done).recipe)


def test_a_quick_cut_measures_few_languages_beside_one_draw_and_lets_base_and_core_talk(
    llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["cut", str(llama), "--quick", "--languages", "de,fr", "--top", "2%", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = result.stderr.index("found: perplexity as a multiple of the base's, mean of 2 languages: core-zeroed ")
    assert found < result.stderr.index("continuations:")  # said before the rest of the work
    report = Report.load(out)
    assert list(report.perplexity) == ["base", "core-zeroed", "bottom-zeroed", "largest-zeroed", "random-zeroed"]
    assert all(list(row) == ["de", "fr"] for row in report.perplexity.values())
    assert all(item.low is not None for item in report.perplexity["core-zeroed"].values())
    assert {name: len(items) for name, items in report.generations.items()} == {"base": 1, "core-zeroed": 1}
    assert [item.sequences for item in report.scores] == [2, 2]
    assert report.regions["core"].fraction == pytest.approx(0.02, rel=0.2)


def test_without_measuring_a_cut_writes_the_core_and_says_what_comes_to_nothing(llama: Path, tmp_path: Path) -> None:
    arguments = ["cut", str(llama), "--quick", "--no-verify", "--languages", "de", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = "neither written nor measured, so without effect: bottom-zeroed, largest-zeroed, random-zeroed"
    assert told in result.stderr
    assert (tmp_path / "out/variants/core-zeroed/model.safetensors").is_file()
    assert not Report.load(tmp_path / "out").perplexity


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["cut", str(llama), "--dry-run", "--json"], catch_exceptions=False)
    data = json.loads(shown.stdout)
    assert data["output"] == "out/cut-model"
    assert data["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--top", "1"], "--top 1: a share between 0 and 1, such as 0.01"),
        (["--top", "0"], "--top 0: a share between 0 and 1"),
        (["--top", "one"], "--top one: write a share such as 0.01, or 1%"),
        (["--device", "gpu"], "--device gpu: no such device; did you mean 'cuda'?"),
        (["--prompts", "4"], "--prompts 4: there are 3"),
        (["--languages", "ar,xx"], "--languages: no text for 'xx'"),
        (["--languages", "noo"], "did you mean 'no'?"),
        (["--set", "regions.kore.select.top=0.1"], "no region 'kore'; did you mean 'core'?"),
        (["--device", "cuda:77"], "--device cuda:77: not available here"),
    ],
)
def test_mistakes_are_said_before_any_work(llama: Path, given: list[str], told: str, tmp_path: Path) -> None:
    arguments = ["cut", str(llama), "--output", str(tmp_path / "out"), "--dry-run", *given]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert told in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("builtin:tiny30", "cut-tiny30"),
        ("hf://org/Some-Model.v1@main", "cut-Some-Model.v1"),
        ("org/name", "cut-name"),
        ("./models/my model/", "cut-my-model"),
    ],
)
def test_outputs_are_named_after_the_model(model: str, name: str) -> None:
    given = FirstCut(model).overrides(Checkpoint.open("builtin:tiny30"), ["ar", "es", "ru", "zh", "ko", "vi"], 4)
    assert f'name="{name}"' in given
    assert f'output="out/{name}"' in given


def test_a_model_with_few_positions_gets_short_sequences(make_model: Callable[..., Path]) -> None:
    """GPT-2's table of positions ends; a window beyond it would be refused."""
    model = make_model("gpt2")  # 64 positions
    given = FirstCut(str(model)).overrides(Checkpoint.open(model), ["ar", "es", "ru", "zh", "ko", "vi"], 4)
    made = plan_recipe("zero_core", overrides=given)
    assert made.recipe.verify is not None
    assert made.recipe.verify.window == 64
    (score,) = made.scores()
    assert getattr(score, "sequence_length", None) == 64


def test_batches_fill_the_memory_that_is_free_and_not_more() -> None:
    def shape(hidden: int, whole: bool) -> Shape:
        return Shape(32, 10, 10, 100, False, hidden, 4 * hidden, 1000, whole)

    one = 4 * 256 * (12 * 1024 + 5 * 4096)  # bytes of one sequence in one layer
    assert [rows_within(shape(1024, False), free) for free in (0, one, 5 * one, 1000 * one)] == [1, 1, 4, 32]
    assert rows_within(shape(1024, True), 64 * one) == 2  # a model held whole keeps all its layers' activations


def test_doses_of_core_largest_and_random_are_drawn_as_curves_with_intervals(llama: Path, tmp_path: Path) -> None:
    arguments = ["cut", str(llama), "--dose", "--languages", "de", "--output", str(tmp_path / "out"), *LITTLE]
    arguments += ["--set", "verify.window=32", "--set", "verify.divergence=false", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = Report.load(tmp_path / "out")
    points = report.sweeps["dose"].points
    assert {(kind, share) for kind, share in points.values()} == {
        (kind, share)
        for kind in ("core", "largest", "random")
        for share in (0.001, 0.003, 0.01, 0.03, 0.05)  # of so small a model less is nothing
    }
    for kind in ("core", "largest", "random"):  # each control is as large as the core of its share
        sizes = [report.variants[point].entries for point, (of, _) in points.items() if of == kind]
        assert sizes == [report.variants[point].entries for point, (of, _) in points.items() if of == "core"]
        assert sizes == sorted(sizes)
    assert not any(variant.written for variant in report.variants.values())
    drawn = next(figure for figure in figures(report) if figure.name == "sweep-dose")
    rows = {row["point"]: row for row in drawn.spec["data"]["values"]}
    summary = report.summary["dose-core-0.05"]
    assert (rows["dose-core-0.05"]["low"], rows["dose-core-0.05"]["high"]) == (summary.low, summary.high)
    assert "Bars are intervals." in drawn.caption
    refused = CliRunner().invoke(app, ["cut", str(llama), "--dose", "--no-verify", "--languages", "de"])
    assert "does not go with --no-verify" in str(refused.exception)
