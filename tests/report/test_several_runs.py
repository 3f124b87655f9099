"""Several runs on one page, a run as a Space, pictures for a notebook: what stands there is what the reports hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from reports import make_region, make_report
from typer.testing import CliRunner

from surgeon.cli import app
from surgeon.errors import InputError
from surgeon.forgetting import Point, forgetting_figure
from surgeon.report.compared import comparison_figures, open_runs
from surgeon.report.data import Report
from surgeon.report.drawing import svg


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two outputs; in the second each language is twice as bad without the cut, and the cut does twice as much."""
    made = make_report()
    worse = {
        name: {
            code: item.model_copy(
                update={"log_perplexity": item.log_perplexity + (math.log(2) if name != "base" else 0)}
            )
            for code, item in row.items()
        }
        for name, row in made.perplexity.items()
    }
    for name, report in (("a", made), ("b", made.model_copy(update={"perplexity": worse}))):
        (tmp_path / name).mkdir()
        report.save(tmp_path / name / "report.json")
    return [tmp_path / "a", tmp_path / "b"]


def test_each_run_is_told_against_its_own_base(runs: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["compare", *map(str, runs), "--output", str(tmp_path / "page"), "--json"], catch_exceptions=False
    )
    data = json.loads(done.stdout)["runs"]
    assert list(data) == ["a", "b"]
    assert data["a"]["languages"]["en"] == pytest.approx(math.exp(0.2))
    assert data["b"]["languages"]["en"] == pytest.approx(2 * math.exp(0.2))
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page  # of the names in the reports, too
    effects, bases = comparison_figures(open_runs(runs))
    rows = {(row["run"], row["language"]): row for row in effects.spec["data"]["values"]}
    assert rows["b", "English"]["ratio"] == pytest.approx(2 * math.exp(0.2))
    assert {row["run"] for row in bases.spec["data"]["values"]} == {"a", "b"}


def test_a_base_that_is_not_finite_has_no_mark_and_the_page_is_made(runs: list[Path], tmp_path: Path) -> None:
    report = Report.load(runs[1] / "report.json")
    base = dict(report.perplexity["base"])
    base["en"] = base["en"].model_copy(update={name: math.inf for name in ("nll", "perplexity", "bits_per_byte")})
    broken = report.model_copy(update={"perplexity": {**report.perplexity, "base": base}})
    broken.save(runs[1] / "report.json")
    marks = comparison_figures(open_runs(runs))[-1].spec["data"]["values"]
    assert ("b", "English") not in {(mark["run"], mark["language"]) for mark in marks}
    command = ["compare", *map(str, runs), "--output", str(tmp_path / "page")]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page" / "index.html").is_file()


def test_what_cannot_be_compared_is_said(runs: list[Path], tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.mkdir()
    make_report().model_copy(update={"perplexity": {}, "summary": {}, "sweeps": {}}).save(silent / "report.json")
    for given, told in (
        ([runs[0]], "takes 2 to 24 output folders, and got 1"),
        ([runs[0], silent], "that run measured nothing"),
        ([runs[0], runs[0]], "the same folder is given twice"),
        ([runs[0], tmp_path / "nowhere"], "cannot be read"),
    ):
        done = CliRunner().invoke(app, ["compare", *map(str, given), "--output", str(tmp_path / "page")])
        assert told in str(done.exception)
    assert not (tmp_path / "page").exists()


def test_a_space_holds_the_page_and_no_path_of_this_machine(runs: list[Path], tmp_path: Path) -> None:
    report = Report.load(runs[0])
    own = {"name": str(tmp_path / "a"), "output": str(tmp_path / "somewhere/out")}
    report.model_copy(update={
        "model": report.model.model_copy(update={"name": own["name"]}),
        "recipe": {**report.recipe, "model": own["name"], "output": own["output"]},
    }).save(runs[0] / "report.json")  # fmt: skip
    space = tmp_path / "space"
    for _ in range(2):  # written over itself, and over nothing else
        done = CliRunner().invoke(app, ["report", str(runs[0]), "--space", str(space)], catch_exceptions=False)
        assert done.exit_code == 0
    assert "sdk: static" in (space / "README.md").read_text(encoding="utf-8")
    assert (space / "index.html").is_file()
    for file in space.rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
    done = CliRunner().invoke(app, ["report", str(runs[0]), "--space", str(runs[1])])
    assert "not empty, and no static Space" in str(done.exception)


def test_a_region_and_a_report_show_themselves_in_a_notebook() -> None:
    region, report = make_region(), make_report()
    assert "data:image/png" in svg(region.plot())
    roles = region.by_role()
    assert roles["mlp.down"] == (
        sum(region[name].entries for name in region if "down" in name),
        sum(region[name].numel for name in region if "down" in name),
    )
    assert set(roles) == {"attn.q", "mlp.down", "norm"}
    assert report.plot().name == "perplexity"
    assert report.plot("ratios")._repr_svg_().startswith("<svg")
    with pytest.raises(InputError, match="no figure 'nothing'"):
        report.plot("nothing")


def test_the_forgetting_curve_stands_at_multiples_of_the_beginning() -> None:
    points = [Point(step, code, log) for code, logs in (("en", (1.0, 1.5)), ("zh", (2.0, 1.0)))
              for step, log in zip((0, 10), logs, strict=True)]  # fmt: skip
    rows = {(row["language"], row["step"]): row["ratio"] for row in forgetting_figure(points).spec["data"]["values"]}
    assert rows["English", 10] == pytest.approx(math.exp(0.5))
    assert rows["Chinese", 10] == pytest.approx(math.exp(-1.0))
    assert rows["Chinese", 0] == rows["English", 0] == 1
