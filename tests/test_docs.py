"""Pages that are generated from the code are current."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from surgeon.recipe import recipe_schema

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
