"""Sweeps: a variant over a grid of values, expanded into plain variants and regions before anything else sees them.

Every point of the grid becomes a variant of its own, named by the variant and its values: `zeroed-core-0.01`. A
region that a swept key belongs to, or that is made from such a region, gets a copy named in the same way:
`core-0.01`. Scores, plans and measurements then know nothing of sweeps.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from surgeon.errors import Problem, did_you_mean
from surgeon.operations import OPERATIONS
from surgeon.recipe.lines import KeyPath, assign, dotted_path, move_line, where_is
from surgeon.recipe.references import mentions
from surgeon.region.algebra import renamed


@dataclass(frozen=True)
class Sweep:
    """The axes of a grid with their values, and the variant at each point with its value on each axis."""

    axes: Mapping[str, tuple[Any, ...]]
    points: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class _Choice:
    """At one point: a key of the recipe takes a value, which stands at `source` in the recipe."""

    axis: int
    label: str
    key: KeyPath
    value: Any
    source: KeyPath


def expand(
    data: dict[str, Any], path: str, lines: dict[KeyPath, str], problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, Sweep]]:
    """Return a recipe's data with the points of its sweeps in place of them, and the sweeps.

    `data` fits the schema and is left as it is; `lines` gains the places of what is added, which are those of the
    swept values where there are some; `problems` gains what cannot be expanded.
    """
    variants: dict[str, Any] = data.get("variants", {})
    if not any(variant.get("sweep") for variant in variants.values()):
        return data, {}
    grid = _Grid(path, lines, problems, dict(data.get("regions", {})), {}, frozenset(variants), "verify" in data)
    sweeps = {}
    for name, variant in variants.items():
        if variant.get("sweep"):
            sweeps[name] = grid.sweep(name, variant)
        else:
            grid.variants[name] = variant
    return {**data, "regions": grid.regions, "variants": grid.variants}, sweeps


@dataclass(frozen=True)
class _Grid:
    """The regions and variants of a recipe, to which sweeps add theirs."""

    path: str
    lines: dict[KeyPath, str]
    problems: list[Problem]
    regions: dict[str, Any]
    variants: dict[str, Any]
    taken: frozenset[str]
    measured: bool

    def sweep(self, name: str, variant: Mapping[str, Any]) -> Sweep:
        """Add a variant for each point of one sweep."""
        axes: Mapping[str, Any] = variant["sweep"]
        plain = {"write": False} | {key: value for key, value in variant.items() if key != "sweep"}
        found = len(self.problems)
        if not (plain["write"] or self.measured):
            self._problem(("variants", name, "sweep"), "nothing would come of it: add `verify:` to the recipe")
        choices = [self._axis(i, name, axis, spec) for i, (axis, spec) in enumerate(axes.items())]
        points: dict[str, tuple[Any, ...]] = {}
        for place in itertools.product(*choices) if len(self.problems) == found else ():
            point = "-".join([name, *(along[0].label for along in place)])
            if point in self.taken or point in self.variants:
                self._problem(("variants", name, "sweep"), f"'{point}' would be the name of two variants; rename one")
            self._add_point(name, point, plain, [choice for along in place for choice in along])
            points[point] = tuple(along[0].value for along in place)
            if len(self.problems) > found:
                break  # what is wrong with one point is wrong with its neighbours
        self._refuse_twins(name, list(axes), points)
        return Sweep({axis: tuple(spec["to"]) for axis, spec in axes.items()}, points)

    def _axis(self, number: int, name: str, axis: str, spec: Mapping[str, Any]) -> list[list[_Choice]]:
        """Return, for each value of an axis, what it sets."""
        here: KeyPath = ("variants", name, "sweep", axis)
        texts = [spec["set"]] if isinstance(spec["set"], str) else spec["set"]
        for text in texts:
            first, *rest = _key(text)
            if first == "regions" and len(rest) > 1:
                if rest[0] not in self.regions:
                    what = f"no region '{rest[0]}'{did_you_mean(str(rest[0]), self.regions)}"
                    self._problem((*here, "set"), what)
            elif first != "operations" or not rest:
                what = f"'{text}' cannot be swept: give a key of a region or operation, such as regions.core.select.top"
                self._problem((*here, "set"), what)
        values = spec["to"]
        for i, value in enumerate(values):
            if value in values[:i]:
                self._problem((*here, "to", i), f"the value {value} is given twice")
        return [
            [_Choice(number, label, _key(text), value, (*here, "to", i)) for text in texts]
            for i, (label, value) in enumerate(zip(_labels(values), values, strict=True))
        ]

    def _add_point(self, name: str, point: str, plain: Mapping[str, Any], choices: Sequence[_Choice]) -> None:
        made = self.variants[point] = deepcopy(dict(plain))
        self._copy_lines(("variants", name), ("variants", point))
        for choice in choices:
            if choice.key[0] == "operations":
                self._assign(made, ("variants", point), choice.key, choice)
        for holder, key in _uses(made):
            holder[key] = self._region(holder[key], choices, name)[0]

    def _region(
        self, name: str, choices: Sequence[_Choice], variant: str, inside: frozenset[str] = frozenset()
    ) -> tuple[str, frozenset[int]]:
        """Return the name of a region as it is at a point, adding it if need be, and the axes that change it."""
        if not isinstance(name, str) or name not in self.regions or name in inside:
            return name, frozenset()
        inside |= {name}
        spec = deepcopy(self.regions[name])
        own = [choice for choice in choices if choice.key[:2] == ("regions", name)]
        for choice in own:
            self._assign(spec, (), choice.key[2:], choice)
        others = {other: self._region(other, choices, variant, inside) for _, other in mentions(spec)}
        origin = spec.get("from")
        if isinstance(origin, str) and self._score_is_swept(origin, choices):
            others[origin] = self._region(origin, choices, variant, inside)
        axes = frozenset(choice.axis for choice in own).union(*(swept for _, swept in others.values()))
        if not axes:
            return name, axes
        _rename(spec, {old: new for old, (new, _) in others.items()})
        labels = {choice.axis: choice.label for choice in choices}
        new = "-".join([name, *(labels[axis] for axis in sorted(axes))])
        while self.regions.get(new, spec) != spec:
            new = f"{variant}.{new}"
        if new not in self.regions:
            self.regions[new] = spec
            self._copy_lines(("regions", name), ("regions", new))
            last = next(choice for choice in reversed(choices) if choice.axis in axes)
            self.lines["regions", new] = where_is(self.path, self.lines, last.source)
            for choice in own:
                move_line(self.lines, ("regions", new, *choice.key[2:]), where_is(self.path, self.lines, choice.source))
        return new, axes

    def _score_is_swept(self, name: str, choices: Sequence[_Choice]) -> bool:
        """Say whether the score that a region has or takes `from` another is not the same at all points."""
        seen: set[str] = set()
        while isinstance(name, str) and name not in seen:
            seen.add(name)
            if any(c.key[:2] == ("regions", name) and c.key[2] in ("score", "from") for c in choices):
                return True
            name = self.regions.get(name, {}).get("from")
        return False

    def _assign(self, data: Any, prefix: KeyPath, key: KeyPath, choice: _Choice) -> None:
        if not assign(data, key, deepcopy(choice.value)):
            dotted = ".".join(str(part) for part in choice.key)
            self._problem((*choice.source[:-2], "set"), f"the recipe has no such place as {dotted}")
        elif prefix:
            move_line(self.lines, (*prefix, *key), where_is(self.path, self.lines, choice.source))

    def _copy_lines(self, old: KeyPath, new: KeyPath) -> None:
        for key in [key for key in self.lines if key[: len(old)] == old]:
            self.lines[(*new, *key[len(old) :])] = self.lines[key]

    def _refuse_twins(self, name: str, axes: Sequence[str], points: Mapping[str, tuple[Any, ...]]) -> None:
        """Two points that do the same are a mistake: an axis sets keys that one of them does not use."""
        for one, other in itertools.combinations(points, 2):
            if self.variants[one] == self.variants[other]:
                pairs = zip(axes, points[one], points[other], strict=True)
                axis = next(axis for axis, value, another in pairs if value != another)
                what = f"{one} and {other} would be the same: nothing that they use is set by this axis"
                self._problem(("variants", name, "sweep", axis), what)
                return

    def _problem(self, key: KeyPath, what: str) -> None:
        self.problems.append(Problem(where_is(self.path, self.lines, key), what))


def _key(text: str) -> KeyPath:
    """Read the path of a swept key; the second part of one in `regions` is a name, also if it is a number."""
    first, *rest = dotted_path(text)
    return (first, str(rest[0]), *rest[1:]) if first == "regions" and rest else (first, *rest)


def _labels(values: Sequence[Any]) -> list[str]:
    """Name values in letters that file names can have; by their number where that does not tell them apart."""
    labels = [re.sub(r"[^\w.-]+", "_", str(value)).strip("_") for value in values]
    usable = len(set(labels)) == len(labels) and all(0 < len(label) <= 40 for label in labels)
    return labels if usable else [str(i) for i in range(1, len(values) + 1)]


def _uses(variant: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The places in a variant that name a region: a mapping and its key."""
    for operation in variant.get("operations", ()):
        if isinstance(operation, dict):  # swept values may be anything until the schema has seen them
            yield from ((operation, kind) for kind in OPERATIONS if kind in operation)
    if "freeze" in variant:
        yield variant, "freeze"


def _rename(spec: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give the regions that a region is made from their names at a point."""
    if isinstance(spec.get("combine"), str):
        spec["combine"] = renamed(spec["combine"], names)
    for holder, key in ((spec.get("dimensions"), "of"), (spec.get("control"), "of"), (spec, "from")):
        if isinstance(holder, dict) and holder.get(key) in names:
            holder[key] = names[holder[key]]
