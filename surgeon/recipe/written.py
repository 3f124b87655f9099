"""A recipe in other words: its schema as JSON, for editors, and itself as YAML with its defaults filled in."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import yaml

from surgeon.recipe.schema import Recipe


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema(by_alias=True)


def as_data(recipe: Recipe, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a recipe as JSON data with its defaults filled in, some of its keys left out."""
    return dict(json.loads(recipe.model_dump_json(by_alias=True, exclude_none=True, exclude=set(without))))


def resolved_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML with its defaults filled in; loading it gives an equal recipe."""
    return yaml.safe_dump(as_data(recipe), sort_keys=False, allow_unicode=True)
