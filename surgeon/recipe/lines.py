"""A recipe's data as a tree in which each part knows the line that it comes from.

Trees are never changed: `replaced` gives another tree that shares all that is the same, so that a copy of a region
costs what is different about it, and keeps its lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]
Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Node:
    """A value, and where it stands (`file:line`, or `--set PATH`); one in a mapping stands where its key does."""

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
    where: str = field(compare=False)

    def child(self, part: str | int) -> Node | None:
        """Return the value at a key of a mapping or a place of a list; None if there is none."""
        if isinstance(self.value, Mapping):
            return self.value.get(part) if isinstance(part, str) else None
        if isinstance(self.value, tuple) and isinstance(part, int) and 0 <= part < len(self.value):
            return self.value[part]
        return None

    def mapping(self, name: str) -> Mapping[str, Node]:
        """Return what stands at a key, if that is a mapping, else an empty one."""
        child = self.child(name)
        return child.value if child is not None and isinstance(child.value, Mapping) else {}

    def items(self) -> Iterator[Node]:
        """The parts of a list; none of anything else."""
        yield from self.value if isinstance(self.value, tuple) else ()


def line_number(where: str) -> int:
    """Return the line in `file:line`; 0 for places that have none."""
    tail = where.rpartition(":")[2]
    return int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 10 else 0


def nearest(node: Node, key: KeyPath) -> Node:
    """Return the value at a key path, or the innermost around it that is there."""
    for part in key:
        child = node.child(part)
        if child is None:
            break
        node = child
    return node


def plain(node: Node) -> Any:
    """Return the data without the lines: dict, list, str, int, float, bool, None."""
    if isinstance(node.value, tuple):
        return [plain(child) for child in node.value]
    if isinstance(node.value, Mapping):
        return {name: plain(child) for name, child in node.value.items()}
    return node.value


def replaced(node: Node, key: KeyPath, new: Node) -> Node | None:
    """Return a tree with another value at a key path; mappings on the way are made.

    Returns:
        None if there is no such place: a list that is too short, or what is neither list nor mapping.
    """
    if not key:
        return new
    first, rest = key[0], key[1:]
    if isinstance(node.value, Mapping):
        name = str(first)
        inner = replaced(node.value.get(name) or Node({}, new.where), rest, new)
        return None if inner is None else Node({**node.value, name: inner}, node.where)
    child = node.child(first)
    inner = replaced(child, rest, new) if child is not None else None
    if inner is None or not isinstance(node.value, tuple) or not isinstance(first, int):
        return None
    return Node((*node.value[:first], inner, *node.value[first + 1 :]), node.where)


def dotted_path(text: str) -> KeyPath:
    """Read a path such as `variants.cut.operations.0.zero`; numbers count places of a list from 0."""
    return tuple(
        int(part) if part.isascii() and part.isdigit() and len(part) < 10 else part for part in text.split(".")
    )
