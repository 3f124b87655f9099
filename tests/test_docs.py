"""Pages that are generated from the code are current."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

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
