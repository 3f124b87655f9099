"""YAML with line numbers: plain data, the line of each key, and the traps of YAML 1.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import yaml

from surgeon.errors import InputError, Problem

KeyPath: TypeAlias = tuple[str | int, ...]


def line_number(where: str) -> int:
    """Return the line in `file:line`; 0 for places that have none."""
    tail = where.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def where_is(path: str, lines: Mapping[KeyPath, str], key: KeyPath) -> str:
    """Return the place of a key, or of its nearest enclosing key."""
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key, f"{path}:1")


def construct(node: yaml.Node, key: KeyPath, path: str, lines: dict[KeyPath, str], problems: list[Problem]) -> Any:
    """Build plain data from a YAML node, noting each key's line and the traps of YAML 1.1."""
    lines.setdefault(key, f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        return [construct(child, (*key, i), path, lines, problems) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for name_node, child in node.value:
            where = f"{path}:{name_node.start_mark.line + 1}"
            name = name_node.value
            if not isinstance(name, str):
                problems.append(Problem(where, "a key must be plain text"))
                continue
            if name_node.tag == "tag:yaml.org,2002:bool":
                problems.append(Problem(where, _bool_trap(name)))
            if name in result:
                problems.append(Problem(where, f"the key '{name}' is given twice"))
            lines[(*key, name)] = where
            result[name] = construct(child, (*key, name), path, lines, problems)
        return result
    value = yaml.SafeLoader("").construct_object(node)
    if isinstance(value, bool) and node.value.lower() not in ("true", "false"):
        problems.append(Problem(f"{path}:{node.start_mark.line + 1}", _bool_trap(node.value)))
        return node.value
    return value


def _bool_trap(word: str) -> str:
    meaning = "false" if word.lower() in ("no", "off", "n", "false") else "true"
    return f"YAML reads the bare word `{word}` as {meaning}; write '{word}' in quotes if you mean the word or language"


def override_value(data: dict[str, Any], override: str, lines: dict[KeyPath, str]) -> None:
    """Apply one `PATH=VALUE` to the data; the value is YAML.

    Raises:
        InputError: it is malformed, or the data has no such place.
    """
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise InputError(f"--set {override}: write --set PATH=VALUE, for example --set verify.tokens=128")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    key = dotted_path(dotted)
    if not assign(data, key, value):
        raise InputError(f"--set {override}: the recipe has no such place")
    move_line(lines, key, f"--set {dotted}")


def dotted_path(text: str) -> KeyPath:
    """Read a path such as `variants.cut.operations.0.zero`; numbers count places of a list from 0."""
    return tuple(int(part) if part.isdigit() else part for part in text.split("."))


def assign(data: Any, key: KeyPath, value: Any) -> bool:
    """Put a value at a place of nested data, making mappings on the way; returns False if there is no such place."""
    for part in key[:-1]:
        if isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif isinstance(data, dict):
            data = data.setdefault(str(part), {})
        else:
            return False
    last = key[-1]
    if isinstance(data, list) and isinstance(last, int) and last < len(data):
        data[last] = value
    elif isinstance(data, dict):
        data[str(last)] = value
    else:
        return False
    return True


def move_line(lines: dict[KeyPath, str], key: KeyPath, where: str) -> None:
    """Note that the value at `key`, and all that was inside it, now comes from elsewhere."""
    for inner in [inner for inner in lines if inner[: len(key)] == key]:
        del lines[inner]
    lines[key] = where
