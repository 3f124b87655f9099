"""Write docs/recipe.md, the reference of all recipe keys, from the schema.

Run `python scripts/recipe_reference.py` after changing the schema; a test checks that the page is current.
"""

# ruff: noqa: E501  (rows of tables in Markdown are one line each)

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surgeon.recipe.schema import recipe_schema

TARGET = Path(__file__).parent.parent / "docs" / "recipe.md"
INTRODUCTION = """\
# The recipe, key by key

<!-- Written by scripts/recipe_reference.py from the schema; change the schema, not this page. -->

A recipe is a YAML file. `surgeon recipes` lists the shipped ones, `surgeon recipes zero_core` shows one, and
`surgeon schema` prints the schema for editors. `--set PATH=VALUE` overrides any key, for example
`--set verify.tokens=128`. A key that is not listed here is an error, with a guess at what was meant.

All mistakes of a recipe are shown at once, each with its line.

| YAML | |
|---|---|
| is read | plain data: text, numbers, `true`, `false`, `null`, lists, mappings, and aliases (`&a`, `*a`) of these; dates and times are text |
| is an error | tags (`!!int`), merge keys (`<<`), `.nan`, `.inf`; the traps of YAML 1.1: a bare `no`, which means false, and `010`, which means 8 |
| exponents | need a point and a sign: `1.0e-2` |
| limits | 1 MiB, 100,000 values (repeats by aliases count), 50 levels; a region is made from a chain of at most 32 others |

A value of `--set` is YAML by the same rules, or plain text. It cannot reach into a region or variant that does not exist. Give a new one
whole: `--set 'regions.few={select: {random: 0.001}}'`.
"""


def reference() -> str:
    """Return the whole page."""
    schema = _inlined(recipe_schema())
    parts = [INTRODUCTION, _section("Recipe", schema, schema)]
    parts += [_section(name, schema["$defs"][name], schema) for name in _reached(schema)]
    return "\n".join(parts)


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Put texts and lists that have a definition of their own where they are referred to."""
    plain = {
        f"#/$defs/{name}": {key: value for key, value in node.items() if key not in ("title", "description")}
        for name, node in schema["$defs"].items()
        if node.get("type") in ("string", "array")
    }

    def put(node: Any) -> Any:
        if isinstance(node, dict):
            return plain.get(node.get("$ref", "")) or {key: put(value) for key, value in node.items()}
        return [put(item) for item in node] if isinstance(node, list) else node

    return dict(put(schema))


def _reached(schema: dict[str, Any]) -> list[str]:
    """Return the definitions in the order in which a reader meets them."""
    order: list[str] = []
    waiting = [schema["properties"]]
    while waiting:
        for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(waiting.pop(0))):
            if name not in order:
                order.append(name)
                waiting.append(schema["$defs"][name])
    return order


def _section(name: str, node: dict[str, Any], schema: dict[str, Any]) -> str:
    lines = [f"## {name}", ""]
    description = " ".join(node.get("description", "").split())
    if description:
        lines += [description, ""]
    if node.get("enum"):
        return "\n".join([*lines, f"One of {_values(node['enum'])}.", ""])
    if not node.get("properties"):
        return "\n".join([*lines, "It has no keys: `true` or `{}` asks for it.", ""])
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, value in node["properties"].items():
        meaning = " ".join(value.get("description", "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {_kind(value)} | {_default(key, value, node)} | {meaning} |")
    return "\n".join([*lines, ""])


def _default(key: str, value: dict[str, Any], node: dict[str, Any]) -> str:
    if key in node.get("required", ()):
        return "**required**"
    default = value.get("default")
    return "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"


def _kind(node: dict[str, Any]) -> str:
    """Say in words what values a key takes."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in node:
        return f"`{json.dumps(node['const'])}`"
    if "enum" in node:
        return _values(node["enum"])
    choices = node.get("anyOf") or node.get("oneOf")
    if choices:
        return " or ".join(_kind(choice) for choice in choices if choice.get("type") != "null")
    if node.get("type") == "array":
        return f"list of {_kind(node.get('items', {}))}"
    if node.get("type") == "object":
        inner = node.get("additionalProperties")
        return f"name: {_kind(inner)}" if isinstance(inner, dict) else "mapping"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
    return ", ".join([words.get(node.get("type", ""), "anything"), *_bounds(node)])


def _bounds(node: dict[str, Any]) -> Iterator[str]:
    phrases = {
        "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
    }  # fmt: skip
    for bound, phrase in phrases.items():
        if bound in node:
            yield f"{phrase} {node[bound]:g}"


def _values(values: list[Any]) -> str:
    return ", ".join(f"`{value}`" for value in values)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"wrote {TARGET}")
