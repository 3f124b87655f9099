"""The regions of a recipe as they are at one point of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from graphlib import TopologicalSorter
from typing import Any

from surgeon.kinds import kinds
from surgeon.recipe.lines import KeyPath
from surgeon.recipe.references import LONGEST_CHAIN, mentions


class NoPlace(Exception):
    """A swept key has no place in what it is to change."""


@dataclass(frozen=True)
class Choice:
    """At one point, a key of the recipe takes a value of an axis, which stands at `where`."""

    axis: int
    label: str
    key: KeyPath
    value: Any
    where: str

    def changes(self, region: str) -> bool:
        """True if the key is one of a region."""
        return self.key[:2] == ("regions", region)


def with_value(data: Any, key: KeyPath, value: Any) -> Any:
    """Return data with another value at a key path; mappings on the way are made, and `data` stays as it is.

    Raises:
        NoPlace: there is no such place.
    """
    if not key:
        return value
    first, rest = key[0], key[1:]
    if isinstance(data, dict):
        return {**data, str(first): with_value(data.get(str(first), {}), rest, value)}
    if isinstance(data, list) and isinstance(first, int) and first < len(data):
        return [*data[:first], with_value(data[first], rest, value), *data[first + 1 :]]
    raise NoPlace


def chosen(data: Any, choice: Choice, key: KeyPath) -> Any:
    """Return data with the value of a choice at a key path.

    Raises:
        NoPlace: there is no such place; the argument is the choice.
    """
    try:
        return with_value(data, key, choice.value)
    except NoPlace:
        raise NoPlace(choice) from None


@dataclass(frozen=True)
class RegionAtPoint:
    """A region with the values of a point, the regions that it follows, and the axes that it depends on."""

    data: Any
    parts: Sequence[str]
    axes: frozenset[int]

    def renamed(self, names: Mapping[str, str]) -> Any:
        """Return its data with new names for the regions that it follows."""
        names = {part: names.get(part, part) for part in self.parts}
        data = self.data
        for key, kind in kinds("surgeon.regions").items():
            for below in {below for below, _ in kind.mentioned(data.get(key))}:
                text = reduce(lambda value, part: value[part], below, data[key])
                data = with_value(data, (key, *below), kind.renamed(text, names))
        return {**data, "from": names.get(data["from"], data["from"])} if "from" in data else data


def regions_at(written: Mapping[str, Any], used: Sequence[str], choices: Sequence[Choice]) -> dict[str, RegionAtPoint]:
    """Return the regions that are used at a point, with what they are made from, each after its parts.

    Raises:
        NoPlace: see `chosen`.
        CycleError: with these values a region is made from itself.
    """
    data: dict[str, Any] = {}
    parts: dict[str, list[str]] = {}
    waiting = list(used)
    while waiting:
        name = waiting.pop()
        if name in written and name not in data:
            data[name] = written[name]
            for choice in choices:
                if choice.changes(name):
                    data[name] = chosen(data[name], choice, choice.key[2:])
            parts[name] = [part for part in _followed(data[name], written, choices) if part in written]
            waiting += parts[name]
    found: dict[str, RegionAtPoint] = {}
    for name in TopologicalSorter(parts).static_order():
        own = {choice.axis for choice in choices if choice.changes(name)}
        found[name] = RegionAtPoint(
            data[name], parts[name], frozenset(own).union(*(found[p].axes for p in parts[name]))
        )
    return found


def _followed(region: Any, written: Mapping[str, Any], choices: Sequence[Choice]) -> list[str]:
    """Return the regions that one is made from; the one whose score it takes only if that score is swept."""
    origin = name = region.get("from")
    for _ in range(LONGEST_CHAIN):
        if not isinstance(name, str) or name not in written:
            break
        if any(choice.changes(name) and choice.key[2] in ("score", "from") for choice in choices):
            return [*(part for _, part in mentions(region)), str(origin)]
        name = written[name].get("from")
    return [part for _, part in mentions(region)]
