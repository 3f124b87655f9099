"""The one door for YAML: text becomes plain data with the line of each part, within limits, or one clear error.

Plain data is text, numbers, booleans, null, lists, and mappings whose keys are text. Tags, merge keys and numbers
that are none are noted as problems, and so are the traps of YAML 1.1; dates and times are the text that they are
written as. Reading is not recursive, and nothing is built beyond the limits, whatever the text holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, TypeAlias

import yaml
from yaml.resolver import Resolver

from surgeon.errors import Problem, RecipeError

LONGEST = 1 << 20  # bytes
DEEPEST = 50  # lists and mappings inside each other
MOST_NODES = 100_000  # values and keys, those that aliases repeat counted again
_LONGEST_PLAIN = 1000  # characters of a number, or of another word that YAML could read as more than text
_LARGEST_INTEGER = 2**63  # which other readers of YAML and JSON hold, too

# The fast parser is used for its events only: what builds data on top of it overflows the stack on deep nesting.
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = Resolver()
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_NUMBERS = (".inf", ".nan")

Where = Callable[[int], str]
KeyPath: TypeAlias = tuple[str | int, ...]
Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Node:
    """A value, and where it stands (`file:line`); one in a mapping stands where its key does."""

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
    where: str = field(compare=False)

    def child(self, part: str | int) -> Node | None:
        """Return the value at a key of a mapping or an index of a list; None if there is none."""
        if isinstance(self.value, Mapping):
            return self.value.get(part) if isinstance(part, str) else None
        if isinstance(self.value, tuple) and isinstance(part, int) and 0 <= part < len(self.value):
            return self.value[part]
        return None


def plain(node: Node) -> Any:
    """Return the data without the lines: dict, list, str, int, float, bool, None."""
    if isinstance(node.value, tuple):
        return [plain(child) for child in node.value]
    if isinstance(node.value, Mapping):
        return {name: plain(child) for name, child in node.value.items()}
    return node.value


def along(node: Node, key: KeyPath) -> list[Node]:
    """Return the values on the way to a key path, from `node` itself to the last one that is there."""
    nodes = [node]
    for part in key:
        child = nodes[-1].child(part)
        if child is None:
            break
        nodes.append(child)
    return nodes


def shared(one: KeyPath, other: KeyPath) -> int:
    """Return how many parts two key paths have in common from the start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def line_number(where: str) -> int:
    """Return the line in `file:line`; 0 for what has none, such as `--set PATH`."""
    tail = where.rpartition(":")[2]
    return int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 10 else 0


def dotted_path(text: str) -> KeyPath:
    """Read a path such as `variants.cut.operations.0.zero`; numbers are indices of a list, from 0."""
    return tuple(
        int(part) if part.isascii() and part.isdigit() and len(part) < 10 else part for part in text.split(".")
    )


def with_value(data: Any, key: KeyPath, value: Any) -> Any:
    """Return plain data with another value at a key path; mappings on the way are made, and `data` stays as it is.

    Raises:
        LookupError: there is no such path: a list is too short, or something is neither list nor mapping.
    """
    if not key:
        return value
    first, rest = key[0], key[1:]
    if isinstance(data, dict):
        return {**data, str(first): with_value(data.get(str(first), {}), rest, value)}
    if isinstance(data, list) and isinstance(first, int) and first < len(data):
        return [*data[:first], with_value(data[first], rest, value), *data[first + 1 :]]
    raise LookupError(first)


class NotYaml(RecipeError):
    """The text breaks off or does not follow the syntax."""


def read_yaml(text: str, where: Where) -> tuple[Node, list[Problem]]:
    """Read one document of YAML.

    Args:
        text: the document; an empty one is read as null.
        where: names the place of a line, counted from 1.

    Returns:
        The data, and what is wrong with it although it could be read.

    Raises:
        NotYaml: the syntax is broken.
        RecipeError: a limit is exceeded.
    """
    if len(text.encode(errors="replace")) > LONGEST:
        raise RecipeError([Problem(where(1), f"longer than {LONGEST:,} bytes: too long for a recipe")])
    control = _UNPRINTABLE.search(text)
    if control is not None:
        code, line = ord(control[0]), text.count("\n", 0, control.start()) + 1
        what = f"the character U+{code:04X} may not stand in YAML; inside double quotes write \\u{code:04x}"
        raise RecipeError([Problem(where(line), what)])
    builder = _Builder(where)
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            builder.add(event)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise NotYaml([Problem(where(line), f"not YAML: {error.problem or error.context}")]) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise NotYaml([Problem(where(1), f"not YAML: {error}")]) from None
    return builder.root or Node(None, where(1)), builder.problems


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    where: str
    anchor: str | None
    counted: int  # nodes before it
    items: list[Node] | None  # of a list
    pairs: dict[str, Node] = field(default_factory=dict)  # of a mapping
    key: str | None = None  # the key whose value comes next
    key_where: str = ""
    awaits_value: bool = False


@dataclass
class _Builder:
    """Puts a tree together from the parser's events, one at a time."""

    where: Where
    problems: list[Problem] = field(default_factory=list)
    root: Node | None = None
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[Node, int] | None] = field(default_factory=dict)  # with its number of nodes, when complete
    nodes: int = 0

    def add(self, event: yaml.Event) -> None:
        """Take the next event."""
        where = self.where(event.start_mark.line + 1 if event.start_mark else 1)
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise NotYaml([Problem(where, "not YAML: a second document begins here")])
        if isinstance(event, yaml.AliasEvent):
            self._alias(str(event.anchor), where)
        elif isinstance(event, yaml.ScalarEvent):
            self._count(1, where)
            self._refuse_tag(event, where)
            is_key = bool(self.stack) and self.stack[-1].items is None and not self.stack[-1].awaits_value
            node = Node(self._key(event, where) if is_key else self._scalar(event, where), where)
            if event.anchor is not None:
                self.anchors[event.anchor] = node, 1
            self._put(node, where)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._count(1, where)
            self._refuse_tag(event, where)
            if len(self.stack) == DEEPEST:
                raise RecipeError([Problem(where, f"lists and mappings are nested more than {DEEPEST} deep")])
            if event.anchor is not None:
                self.anchors[event.anchor] = None
            items: list[Node] | None = [] if isinstance(event, yaml.SequenceStartEvent) else None
            self.stack.append(_Open(where, event.anchor, self.nodes - 1, items))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self.stack.pop()
            node = Node(done.pairs if done.items is None else tuple(done.items), done.where)
            if done.anchor is not None:
                self.anchors[done.anchor] = node, self.nodes - done.counted
            self._put(node, done.where)

    def _count(self, nodes: int, where: str) -> None:
        self.nodes += nodes
        if self.nodes > MOST_NODES:
            raise RecipeError([Problem(where, f"more than {MOST_NODES:,} values, those that aliases repeat counted")])

    def _alias(self, name: str, where: str) -> None:
        if name not in self.anchors:
            raise NotYaml([Problem(where, f"not YAML: '*{name}' repeats '&{name}', which is not there")])
        known = self.anchors[name]
        if known is None:
            raise RecipeError([Problem(where, f"'*{name}' stands inside of what it repeats, '&{name}'")])
        node, size = known
        self._count(size, where)
        self._put(node, where)

    def _put(self, node: Node, where: str) -> None:
        """Add a complete value, or key, to the list or mapping that it stands in."""
        if not self.stack:
            self.root = node
            return
        inside = self.stack[-1]
        if inside.items is not None:
            inside.items.append(node)
        elif inside.awaits_value:
            inside.awaits_value = False
            if inside.key is not None:
                inside.pairs[inside.key] = Node(node.value, inside.key_where)
        else:
            inside.awaits_value, inside.key_where = True, where
            inside.key = node.value if isinstance(node.value, str) else None
            if inside.key is None:
                self.problems.append(Problem(where, "a key must be plain text"))
            elif inside.key in inside.pairs:
                self.problems.append(Problem(where, f"the key '{inside.key}' is given twice"))

    def _key(self, event: yaml.ScalarEvent, where: str) -> str:
        """Return a key, which is always the text that is written there."""
        kind = _kind(event)
        if kind == "merge":
            self.problems.append(Problem(where, "merge keys (`<<`) are not read; write the keys themselves"))
        elif kind == "bool":
            self.problems.append(Problem(where, _bool_trap(event.value)))
        self.problems += _half_characters(event.value, where)
        return str(event.value)

    def _scalar(self, event: yaml.ScalarEvent, where: str) -> Scalar:
        text, kind = str(event.value), _kind(event)
        if kind == "null":
            return None
        if kind == "bool":
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
            self.problems.append(Problem(where, _bool_trap(text)))
        if kind in ("int", "float") and ":" not in text:  # 12:30 is 750 to YAML 1.1, and a time to anyone else
            try:
                return _number(text, kind)
            except ValueError as error:
                self.problems.append(Problem(where, str(error)))
        self.problems += _half_characters(text, where)
        return text

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, where: str) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.append(Problem(where, f"tags such as {tag[:60]} are not read; write plain values"))


def _kind(event: yaml.ScalarEvent) -> str:
    """Return what YAML 1.1 takes a scalar for: null, bool, int, float, merge, ...; str where it is in quotes."""
    if not event.implicit[0] or len(event.value) > _LONGEST_PLAIN:
        return "str"
    tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (True, False))  # type: ignore[no-untyped-call]
    return str(tag).rpartition(":")[2]


def _number(text: str, kind: str) -> int | float:
    """Read a number as YAML 1.1 does.

    Raises:
        ValueError: it is not finite, is very large, or is not the same to all readers of YAML; the message says which.
    """
    digits = text.replace("_", "").lower()
    unsigned = digits.lstrip("+-")
    if kind == "float":
        value = math.inf if unsigned in _NO_NUMBERS else float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{text} is not a finite number")
        return value
    if unsigned[:2] in ("0x", "0b"):
        whole = int(digits, 16 if unsigned[1] == "x" else 2)
    elif unsigned[0] == "0" and len(unsigned) > 1:
        raise ValueError(f"{text} is octal to some readers of YAML and not to others; leave out the 0, or use quotes")
    else:
        whole = int(digits)
    if abs(whole) >= _LARGEST_INTEGER:
        raise ValueError(f"{text[:40]} is too large: whole numbers lie within 64 bits")
    return whole


def _bool_trap(word: str) -> str:
    meaning = "false" if word.lower() in ("no", "off", "n", "false") else "true"
    return f"YAML reads the bare word `{word}` as {meaning}; write '{word}' in quotes if you mean the word or language"


def _half_characters(text: str, where: str) -> Iterator[Problem]:
    if _SURROGATE.search(text):
        yield Problem(where, "half a character (a lone surrogate) cannot be stored; write the whole character")
