"""What the schema objects to, in our words and with the line; what a sweep only repeats is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from surgeon.errors import Problem, did_you_mean
from surgeon.operations import OPERATIONS
from surgeon.recipe.lines import KeyPath, line_number
from surgeon.recipe.written import recipe_schema


def faults(
    error: ValidationError,
    data: Any,
    where: Callable[[KeyPath], str],
    most: int,
    origins: Mapping[KeyPath, KeyPath] = MappingProxyType({}),
) -> list[Problem]:
    """Turn the schema's objections into problems, in the order of their lines.

    Args:
        error: of the schema.
        data: what it has read.
        where: tells where a key stands in the file.
        most: how many to return; each takes a search for what was meant.
        origins: for each region and variant that a sweep added, what in the recipe it is a copy of.
    """
    placed = [(_place(detail, data), detail) for detail in error.errors(include_url=False)]
    placed = _without_repetitions(_without_other_choices(placed), origins)
    placed.sort(key=lambda item: line_number(where(item[0])))
    problems = []
    for key, detail in placed[:most]:
        place, what = where(key), _what(key, detail)
        if place.startswith("--set "):  # it names the key already
            what = what.removeprefix(f"{place.removeprefix('--set ')}: ")
        problems.append(Problem(place, what))
    return problems


def _place(detail: Any, data: Any) -> KeyPath:
    """Return the key path of an objection: pydantic's, without what names a choice of the schema and is no key."""
    location = detail["loc"]
    if location[:1] == ("variants",) and location[2:3] == ("operations",):
        location = location[:4] + location[5:]  # after its number comes the operation's kind, which may be a key too
    key: list[str | int] = []
    for part in location:
        if (part in data) if isinstance(data, dict) else isinstance(data, list) and part in range(len(data)):
            key.append(part)
            data = data[part]
    return (*key, location[-1]) if detail["type"] == "missing" else tuple(key)


def _without_other_choices(placed: Sequence[tuple[KeyPath, Any]]) -> list[tuple[KeyPath, Any]]:
    """Drop "should be text" of a mapping that may also be one, where it is said what is wrong with the mapping."""
    doubtful = [detail["type"] == "string_type" and isinstance(detail["input"], dict) for _, detail in placed]
    said = {
        key[:length]
        for (key, _), in_doubt in zip(placed, doubtful, strict=True)
        if not in_doubt
        for length in range(len(key) + 1)
    }
    return [item for item, in_doubt in zip(placed, doubtful, strict=True) if not (in_doubt and item[0] in said)]


def _without_repetitions(
    placed: Sequence[tuple[KeyPath, Any]], origins: Mapping[KeyPath, KeyPath]
) -> list[tuple[KeyPath, Any]]:
    """Drop what is said of a point of a sweep and was said of its template, or of another point, already."""
    kept: dict[Any, tuple[KeyPath, Any]] = {}
    for key, detail in placed:
        original = (*origins.get(key[:2], key[:2]), *key[2:])
        value = detail["input"]
        # A whole region or variant differs at each point, and yet one thing is wrong with all; a value may differ.
        shown = () if isinstance(value, dict | list) else (repr(value), detail["msg"])
        kept.setdefault((original, detail["type"], shown), (key, detail))
    return list(kept.values())


def _what(key: KeyPath, detail: Any) -> str:
    """Say what is wrong."""
    kind, value = detail["type"], detail["input"]
    name = ".".join(str(part) for part in key)
    if kind == "extra_forbidden":
        return f"unknown key '{key[-1]}'{did_you_mean(str(key[-1]), _keys_at(detail['loc'][:-1]))}"
    if kind == "missing":
        return f"'{name}' is missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _unknown_choice(name, detail)
    if kind in ("float_type", "int_type") and isinstance(value, str) and _is_number(value):
        return f"{name}: YAML reads {value} as text, not as a number; write {_as_number(value)}"
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(value, dict | list) or kind == "value_error" else f" (got {value!r})"
    if kind == "less_than_equal" and detail["ctx"]["le"] == 1 and 1 < value <= 100:
        shown = f" (got {value!r}; {value:g} % is {value / 100:g})"
    return f"{name}: {message[0].lower()}{message[1:]}{shown}"


def _unknown_choice(name: str, detail: Any) -> str:
    """Say that an operation, or the kind of a score, is missing or unknown."""
    told_by, value = detail["ctx"]["discriminator"], detail["input"]
    if not told_by.startswith("'"):  # operations are told apart by a function, scores by a field
        word = next(iter(value), "") if isinstance(value, dict) else value
        return f"unknown operation '{word}'{did_you_mean(str(word), OPERATIONS)}"
    field = told_by.strip("'")
    if detail["type"] == "union_tag_not_found":
        return f"'{name}.{field}' is missing"
    known = [word.strip(" '") for word in detail["ctx"]["expected_tags"].split(",")]
    word = str(detail["ctx"]["tag"])
    return f"{name}: unknown {field} '{word}'{did_you_mean(word, known)}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _as_number(text: str) -> str:
    """Return a number as YAML 1.1 reads one: with a point before an exponent."""
    short = f"{float(text):g}"
    return short if "." in short else short.replace("e", ".0e")


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """Keys that the schema knows at a place, for the did-you-mean."""
    schema = _schema()
    node: Any = schema
    for part in location:
        if not (isinstance(part, str) and (part.startswith(("dict[", "function-")) or part in schema["$defs"])):
            node = _step(schema, node, part)  # the others name a choice of the schema, and no place in the recipe
    return sorted(_resolve(schema, node).get("properties", {}))


@lru_cache(maxsize=1)
def _schema() -> dict[str, Any]:
    return recipe_schema()


def _resolve(schema: Any, node: Any) -> Any:
    """Follow references, and of several choices take the list or mapping."""
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    for choice in node.get("anyOf", ()):
        resolved = _resolve(schema, choice)
        if resolved.get("type") in ("object", "array"):
            return resolved
    return node


def _step(schema: Any, node: Any, part: str | int) -> Any:
    """Return the schema of one part of what a schema describes."""
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
