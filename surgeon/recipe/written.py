"""A recipe in other words: its schema as JSON, for editors, and itself as YAML with its defaults filled in."""

from __future__ import annotations

import json
from typing import Any

import yaml

from surgeon.recipe.schema import Recipe


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema(by_alias=True)


def resolved_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML with its defaults filled in; loading it gives an equal recipe."""
    data = json.loads(recipe.model_dump_json(by_alias=True, exclude_none=True))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
