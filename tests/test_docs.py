"""Pages that are generated from the code are current."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from surgeon.api import plan_recipe
from surgeon.cli import app
from surgeon.recipe import recipe_schema
from surgeon.region import Region

ROOT = Path(__file__).parent.parent


def test_recipe_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("recipe_reference", ROOT / "scripts" / "recipe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert module.reference() == page, "docs/recipe.md is out of date: run `python scripts/recipe_reference.py`"


def test_recipe_reference_names_every_key_and_every_link_leads_somewhere() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    schema = recipe_schema()
    for node in (schema, *schema["$defs"].values()):
        for key in node.get("properties", {}):
            assert f"| `{key}` |" in page
    headings = {line.removeprefix("## ").lower() for line in page.splitlines() if line.startswith("## ")}
    assert set(re.findall(r"\(#(\w+)\)", page)) <= headings


def test_the_page_on_seeing_runs(
    recipe: Callable[..., Path], llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command and every piece of Python of the page, on a model of the tests' own."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "seeing.md").read_text(encoding="utf-8")
    for old, new in (("zero_core", str(recipe())), ("builtin:tiny30", str(llama)), ("core-zeroed", "cut")):
        page = page.replace(old, new)
    blocks = re.findall(r"```(console|python)\n(.*?)```", page, re.DOTALL)
    commands = [line.removeprefix("$ ") for kind, text in blocks if kind == "console" for line in text.splitlines()]
    assert len(commands) >= 10
    # The first command makes the folder that all others speak of, so Python waits for the commands.
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert done.exit_code == 0, command
    for kind, text in blocks:
        if kind == "python":
            names: dict[str, Any] = {}
            exec(compile(text, "seeing.md", "exec"), names)
            assert names.get("share", 1.0) == 1.0
    assert (tmp_path / "again.html").read_text() == (tmp_path / "out" / "report.html").read_text()
    changed, core = (
        Region.load(path) for path in ("changed.region.safetensors", "out/regions/core.region.safetensors")
    )
    assert changed.entries == core.entries  # no weight was zero before


def test_the_page_on_sweeps_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command on less text; every piece of a recipe inside the shipped one; every piece of Python."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(console|yaml|python)\n(.*?)```", page, re.DOTALL)
    commands = [line.removeprefix("$ ") for kind, text in blocks if kind == "console" for line in text.splitlines()]
    assert len(commands) >= 4
    less = [
        "verify.languages=[en]",
        "verify.tokens=16",
        "regions.core.score.samples=1",
        "regions.core.score.languages=[ar]",
    ]
    for command in commands:
        words = shlex.split(command)[1:]
        if words[0] == "verify":
            words += ["--languages", "en", "--tokens", "16"]
        else:
            words += [word for item in [*less, "verify.expect=[]"] for word in ("--set", item)]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, command
    shipped = yaml.safe_load((ROOT / "recipes" / "sweep.yaml").read_text(encoding="utf-8"))
    shipped["verify"].pop("expect")
    for kind, text in blocks:
        if kind == "yaml":
            merged = {**shipped}
            for key, value in yaml.safe_load(text).items():
                merged[key] = {**merged[key], **value} if key in ("regions", "verify") else value
            (tmp_path / "piece.yaml").write_text(yaml.safe_dump(merged), encoding="utf-8")
            made = plan_recipe(tmp_path / "piece.yaml")
            assert all(region.entries for region in made.regions.values())
            assert set(made.file.sweeps) == {name for name, value in merged["variants"].items() if "sweep" in value}
        if kind == "python":
            capsys.readouterr()
            exec(compile(text, "sweeps.md", "exec"), {})
            shown = capsys.readouterr().out.splitlines()
            assert [line.split()[:2] for line in shown] == [
                [kind, share] for kind in ("core", "bottom", "random") for share in ("0.002", "0.02")
            ]
