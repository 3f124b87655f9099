"""A recipe's file: YAML with line numbers turned into a `Recipe`.

All problems of a recipe are reported at once, each with its file and line. Later stages (the plan, the
corpus) use `RecipeFile.problem` to point at the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from surgeon.errors import InputError, Problem, RecipeError, did_you_mean
from surgeon.operations import OPERATIONS
from surgeon.recipe.lines import KeyPath, construct, line_number, override_value, where_is
from surgeon.recipe.references import dangling
from surgeon.recipe.schema import Recipe, recipe_schema
from surgeon.recipe.sweeps import Sweep, expand


@dataclass(frozen=True)
class RecipeFile:
    """A valid recipe and where each of its keys stands.

    `recipe` is what is carried out: every point of a sweep is a variant, with regions of its own where it needs
    them. `as_written` still has the sweeps, and loading it again gives the same `recipe`.
    """

    recipe: Recipe
    path: str
    lines: Mapping[KeyPath, str]
    as_written: Recipe
    sweeps: Mapping[str, Sweep]

    def problem(self, path: KeyPath, what: str) -> Problem:
        """Make a problem that points at the line of `path`, or of its nearest enclosing key."""
        return Problem(where_is(self.path, self.lines, path), what)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read a recipe and apply `PATH=VALUE` overrides (values are YAML).

    Raises:
        RecipeError: every problem found.
        InputError: there is no such file, or an override is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the recipe ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a recipe: the file is not UTF-8 text") from None
    lines: dict[KeyPath, str] = {}
    problems: list[Problem] = []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = construct(node, (), str(path), lines, problems) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError([Problem(f"{path}:{line}", f"not YAML: {error.problem}")]) from None
    if not isinstance(data, dict):
        raise RecipeError([Problem(f"{path}:1", "a recipe is a mapping that begins with `version: 1`")])
    for override in overrides:
        override_value(data, override, lines)
    return _validate(data, str(path), lines, problems)


def _validate(data: dict[str, Any], path: str, lines: dict[KeyPath, str], problems: list[Problem]) -> RecipeFile:
    as_written = recipe = _parse(data, path, lines, problems)
    expanded, sweeps = expand(data, path, lines, problems)
    _refuse(problems)
    if sweeps:
        recipe = _parse(expanded, path, lines, problems)
    return RecipeFile(recipe, path, lines, as_written, sweeps)


def _parse(data: dict[str, Any], path: str, lines: Mapping[KeyPath, str], problems: list[Problem]) -> Recipe:
    problems += [Problem(where_is(path, lines, key), what) for key, what in dangling(data)]
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems += [_explain(path, lines, data, detail) for detail in _without_other_choices(error.errors(), data)]
        recipe = None
    _refuse(problems)
    assert recipe is not None
    return recipe


def _without_other_choices(details: Sequence[Any], data: Any) -> list[Any]:
    """Drop "should be text" of a mapping that may also be one, where it is said what is wrong with the mapping."""
    keyed = [(_without_tags(detail["loc"], data, detail["type"]), detail) for detail in details]
    other = [detail["type"] == "string_type" and isinstance(detail["input"], dict) for detail in details]
    said = [key for (key, _), dropped in zip(keyed, other, strict=True) if not dropped]
    return [
        detail
        for (key, detail), doubtful in zip(keyed, other, strict=True)
        if not (doubtful and any(found[: len(key)] == key for found in said))
    ]


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise RecipeError(sorted(set(problems), key=lambda problem: line_number(problem.where)))


def _explain(path: str, lines: Mapping[KeyPath, str], data: Any, detail: Any) -> Problem:
    """Turn one pydantic error into our words."""
    kind, value = detail["type"], detail.get("input")
    key = _without_tags(detail["loc"], data, kind)
    where = where_is(path, lines, key)
    name = ".".join(str(part) for part in key)
    if kind == "extra_forbidden":
        return Problem(where, f"unknown key '{key[-1]}'{did_you_mean(str(key[-1]), _keys_at(detail['loc'][:-1]))}")
    if kind == "missing":
        return Problem(where, f"'{name}' is missing")
    if kind == "union_tag_not_found":
        discriminator = detail["ctx"]["discriminator"]
        if discriminator.startswith("'"):  # a field by that name; operations are told apart by a function
            return Problem(where, f"'{name}.{discriminator.strip(chr(39))}' is missing")
        word = next(iter(value), "") if isinstance(value, dict) else value
        return Problem(where, f"unknown operation '{word}'{did_you_mean(str(word), OPERATIONS)}")
    if kind == "union_tag_invalid":
        known = [word.strip(" '") for word in detail["ctx"]["expected_tags"].split(",")]
        word = str(detail["ctx"]["tag"])
        what = detail["ctx"]["discriminator"].strip("'")
        return Problem(where, f"{name}: unknown {what} '{word}'{did_you_mean(word, known)}")
    if kind in ("float_type", "int_type") and isinstance(value, str) and _is_number(value):
        return Problem(where, f"{name}: YAML reads {value} as text, not as a number; write {float(value):g}")
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(value, dict | list) or kind == "value_error" else f" (got {value!r})"
    return Problem(where, f"{name}: {message[0].lower()}{message[1:]}{shown}")


def _without_tags(location: Sequence[str | int], data: Any, kind: str) -> KeyPath:
    """Drop from pydantic's location the parts that name a choice of the schema and are not in the recipe."""
    key: list[str | int] = []
    for number, part in enumerate(location):
        if len(key) > 1 and key[-2] == "operations" and location[number - 1] == key[-1]:
            continue  # the operation's kind, which the recipe has too, as the key that holds the region
        inside = isinstance(data, dict) and part in data
        inside |= isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside:
            data = data[part]
        elif not (kind == "missing" and number == len(location) - 1):
            continue
        key.append(part)
    return tuple(key)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _keys_at(key: KeyPath) -> list[str]:
    """Keys that the schema knows at a place, for the did-you-mean."""
    schema = recipe_schema()
    node: Any = schema
    for part in key:
        if isinstance(part, str) and (part.startswith(("dict[", "function-")) or part in schema["$defs"]):
            continue  # names a choice of the schema, and no place in the recipe
        node = _step(schema, node, part)
    return sorted(_resolve(schema, node).get("properties", {}))


def _resolve(schema: Any, node: Any) -> Any:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    for choice in node.get("anyOf", ()):
        resolved = _resolve(schema, choice)
        if resolved.get("type") in ("object", "array"):
            return resolved
    return node


def _step(schema: Any, node: Any, part: str | int) -> Any:
    node = _resolve(schema, node)
    for choice in node.get("oneOf", ()):  # `part` is the tag of a choice: the key or the kind that tells it apart
        properties = _resolve(schema, choice).get("properties", {})
        if part in properties or properties.get("kind", {}).get("const") == part:
            return choice
    if isinstance(part, int):
        return node.get("items", {})
    properties = node.get("properties", {})
    if part in properties:
        return properties[part]
    extra = node.get("additionalProperties", {})
    return extra if isinstance(extra, dict) else {}
