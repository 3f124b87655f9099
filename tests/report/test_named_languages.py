"""A language that is not shipped has the name, script and family that its recipe says, wherever languages are shown."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from reports import make_report
from rich.console import Console

import surgeon
from surgeon.errors import RecipeError
from surgeon.recipe.corpus import TextSpec, open_corpus
from surgeon.report.language_figures import language_groups
from surgeon.text.languages import Language
from surgeon.views.terminal import measures_view, report_view

YORUBA = {"name": "Yoruba", "script": "Latin", "family": "Volta-Niger"}


def shown(view: object) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(view)
    return file.getvalue()


def test_a_run_shows_the_names_that_its_recipe_gives(
    recipe: Callable[..., Path], texts: dict[str, str], tmp_path: Path
) -> None:
    path = recipe()
    data = yaml.safe_load(path.read_text())
    data["corpus"] = {"yo": {"file": texts["de"], **YORUBA}, "fr": texts["fr"]}
    data["regions"]["core"]["score"]["languages"] = ["yo", "fr"]
    data["verify"]["expect"] = [{"variant": "cut", "language": "yo", "ratio_at_least": 0.001}]
    path.write_text(yaml.safe_dump(data))
    report = surgeon.apply(path)
    assert report.language("yo") == Language("Yoruba", "Latin", "Volta-Niger")
    assert report.language("fr").name == "French"
    page = (tmp_path / "out" / "report.html").read_text()
    card = (tmp_path / "out" / "variants" / "cut" / "README.md").read_text()
    for text in (page, card, shown(report_view(report, "out", details=True))):
        assert "Yoruba" in text
    assert "cut in Yoruba: perplexity" in page
    assert "Volta-Niger" in page
    assert "on Yoruba, French" in card
    assert (f"| Yoruba | {report.perplexity['base']['yo'].perplexity:.2f}"[:12]) in card
    assert language_groups(report, "script") == [("Latin", ["fr", "yo"])]
    assert dict(language_groups(report, "family")) == {"Romance": ["fr"], "Volta-Niger": ["yo"]}
    written = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert {key: written["corpus"]["yo"][key] for key in YORUBA} == YORUBA


def test_what_is_not_said_is_what_is_known() -> None:
    corpus = open_corpus({"sv": TextSpec(file="a.txt", name="Swedish of Finland"), "xx": "b.txt"})
    assert corpus.language("sv") == Language("Swedish of Finland", "Latin", "Germanic")
    assert corpus.language("xx") == Language("xx", "other", "other")
    found = {"checkpoint": {"sv": make_report().perplexity["base"]["en"]}}
    assert "Swedish of Finland" in shown(measures_view(found, {}, corpus.language))


def test_an_empty_name_is_a_mistake(recipe: Callable[..., Path], texts: dict[str, str]) -> None:
    path = recipe()
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**data, "corpus": {"de": {"file": texts["de"], "name": ""}, "fr": texts["fr"]}}))
    with pytest.raises(RecipeError, match="name: string should have at least 1 character"):
        surgeon.plan_recipe(path)
