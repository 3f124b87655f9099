"""Sweeps: in a valid recipe, a variant over a grid of values becomes plain variants, one for each point.

A point is named by the variant and its values: `zeroed-core-0.01`. A region that a swept key belongs to, or that is
made from such a region, gets a copy named in the same way: `core-0.01`. Scores, plans and measurements then know
nothing of sweeps.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError
from typing import Any

from surgeon.errors import Problem, did_you_mean
from surgeon.operations import OPERATIONS
from surgeon.recipe.lines import KeyPath, Node, dotted_path, plain
from surgeon.recipe.plain_yaml import DEEPEST
from surgeon.recipe.references import named_regions
from surgeon.recipe.swept_regions import Choice, NoPlace, RegionAtPoint, chosen, regions_at, with_value

# Values that all points together may have, some ten thousand points: more would fill the memory before the plan could
# say how long they take.
_LARGEST = 200_000


@dataclass(frozen=True)
class Sweep:
    """The axes of a grid with their values, and the variant at each point with its value on each axis."""

    axes: Mapping[str, tuple[Any, ...]]
    points: Mapping[str, tuple[Any, ...]]


@dataclass
class Expansion:
    """The variants and regions that sweeps add, as data for the schema.

    `origins` leads from the key path of each of these to that of what it is a copy of, `choices` to what was chosen.
    """

    problems: list[Problem]
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    variants: dict[str, Any] = field(default_factory=dict)
    regions: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, KeyPath] = field(default_factory=dict)
    choices: dict[KeyPath, Sequence[Choice]] = field(default_factory=dict)
    values: int = 0  # of all that was added

    def where(self, key: KeyPath) -> str | None:
        """Return where the value stands that made what is at a key path; None if no sweep did."""
        choices = self.choices.get(key[:2])
        if not choices:
            return None
        written = (*self.origins[key[:2]], *key[2:]) if key[0] == "regions" else key[2:]
        return max(choices, key=lambda choice: (_shared(choice.key, written), choice.axis)).where

    def written(self, kind: str, name: str) -> str:
        """Return the name in the recipe of a variant or region, which may be a copy of it at a point."""
        return str(self.origins.get((kind, name), (kind, name))[1])

    def add(self, kind: str, name: str, origin: str, data: Any, choices: Sequence[Choice]) -> None:
        """Add a variant or a region."""
        (self.variants if kind == "variants" else self.regions)[name] = data
        self.origins[kind, name], self.choices[kind, name] = (kind, origin), choices
        self.values += _size(data)


def expand(tree: Node, problems: list[Problem]) -> Expansion:
    """Make the points of all sweeps of a recipe; `problems` gains what cannot be expanded.

    Args:
        tree: a recipe that the schema accepts.
        problems: of the recipe.
    """
    data, expansion = plain(tree), Expansion(problems)
    for name, variant in tree.mapping("variants").items():
        if variant.mapping("sweep"):
            grid = _Grid(name, variant, data["variants"], data.get("regions") or {}, expansion)
            sweep = grid.expanded()
            if sweep is not None:
                expansion.sweeps[name] = sweep
    return expansion


@dataclass(frozen=True)
class _Axis:
    """The keys that an axis sets, and the values that they all take; `given` is where the keys are named."""

    number: int
    keys: Sequence[KeyPath]
    given: str
    values: Sequence[Node]
    labels: Sequence[str]

    def choices(self, i: int) -> Iterator[Choice]:
        """What is set at a place of the axis."""
        for key in self.keys:
            yield Choice(self.number, self.labels[i], key, plain(self.values[i]), self.values[i].where)


@dataclass
class _Grid:
    """One sweep: the variant `name` of a recipe's `variants`, over its `regions`."""

    name: str
    variant: Node
    variants: Mapping[str, Any]
    regions: Mapping[str, Any]
    expansion: Expansion

    def expanded(self) -> Sweep | None:
        """Add a variant for each point; None if there is something wrong."""
        axes = self.variant.mapping("sweep")
        rest = {key: value for key, value in self.variants[self.name].items() if key != "sweep"}
        template = {"write": False, **rest}  # points are only measured unless it says otherwise
        grid = [self._axis(number, axis) for number, axis in enumerate(axes.values())]
        if not all(axis.values for axis in grid):
            return None
        at_each = _size(template) + sum(len(axis.keys) for axis in grid)
        if not self._has_room(math.prod(len(axis.values) for axis in grid) * at_each):
            return None
        points: dict[str, tuple[Any, ...]] = {}
        for place in itertools.product(*(range(len(axis.values)) for axis in grid)):
            point = "-".join([self.name, *(axis.labels[i] for axis, i in zip(grid, place, strict=True))])
            choices = [choice for axis, i in zip(grid, place, strict=True) for choice in axis.choices(i)]
            # What is wrong with one point is wrong with its neighbours.
            if not (self._is_free(point) and self._add(point, template, choices, grid) and self._has_room(0)):
                return None
            points[point] = tuple(plain(axis.values[i]) for axis, i in zip(grid, place, strict=True))
        self._refuse_twins(axes, points)
        values = ((label, tuple(map(plain, axis.values))) for label, axis in zip(axes, grid, strict=True))
        return Sweep(dict(values), points)

    def _axis(self, number: int, axis: Node) -> _Axis:
        """Return one axis; without values if it cannot be told what it sets."""
        given, to = axis.child("set") or axis, axis.child("to") or axis
        keys = [_key(str(node.value)) for node in ([given] if isinstance(given.value, str) else given.items())]
        wrong = [what for key in keys for what in self._not_swept(key)]
        for what in wrong:
            self._problem(what, given.where)
        values = list(to.items())
        seen: set[str] = set()
        for value in values:
            text = json.dumps(plain(value), sort_keys=True)
            if text in seen:
                self._problem(f"the value {plain(value)} is given twice", value.where)
                wrong.append(text)
            seen.add(text)
        if wrong:
            return _Axis(number, [], given.where, [], [])
        return _Axis(number, keys, given.where, values, _labels([plain(value) for value in values]))

    def _not_swept(self, key: KeyPath) -> Iterator[str]:
        """Say why a key cannot be swept, if it cannot."""
        first, *rest = key
        if first == "regions" and 1 < len(rest) < DEEPEST:
            if rest[0] not in self.regions:
                yield f"no region '{rest[0]}'{did_you_mean(str(rest[0]), itertools.islice(self.regions, 1000))}"
        elif first != "operations" or not 0 < len(rest) < DEEPEST:
            text = ".".join(map(str, key))
            yield f"'{text}' cannot be swept: give a key of a region or operation, such as regions.core.select.top"

    def _is_free(self, point: str) -> bool:
        free = point not in self.variants and point not in self.expansion.variants
        if not free:
            self._problem(f"'{point}' would be the name of two variants; rename one")
        return free

    def _has_room(self, values: int) -> bool:
        fits = self.expansion.values + values <= _LARGEST
        if not fits:
            self._problem(f"its points would have more than {_LARGEST:,} values in all")
        return fits

    def _add(self, point: str, template: Any, choices: Sequence[Choice], grid: Sequence[_Axis]) -> bool:
        """Add the variant at one point, with the regions that it uses; False if it cannot be made."""
        try:
            made = template
            for choice in choices:
                if choice.key[0] == "operations":
                    made = chosen(made, choice, choice.key)
            used = [name for _, name in _uses(made)]
            regions = regions_at(self.regions, used, choices)
        except NoPlace as error:
            (choice,) = error.args
            dotted = ".".join(map(str, choice.key))
            self._problem(f"the recipe has no such place as {dotted}", grid[choice.axis].given)
            return False
        except CycleError as error:
            self._problem(f"at {point} region '{error.args[1][0]}' is made from itself, in a circle")
            return False
        names: dict[str, str] = {}
        for name, region in regions.items():
            if region.axes:
                names[name] = self._region(name, region, region.renamed(names), choices)
        self.expansion.add("variants", point, self.name, _with_regions(made, names), choices)
        return True

    def _region(self, name: str, region: RegionAtPoint, data: Any, choices: Sequence[Choice]) -> str:
        """Add a region under a name that tells the values which make it; equal ones are shared between points."""
        labels = {choice.axis: choice.label for choice in choices}
        new = "-".join([name, *(labels[axis] for axis in sorted(region.axes))])
        while (there := self.regions.get(new, self.expansion.regions.get(new))) is not None and there != data:
            new = f"{self.name}.{new}"
        if there is None:
            own = [choice for choice in choices if choice.axis in region.axes]
            self.expansion.add("regions", new, name, data, own)
        return new

    def _refuse_twins(self, axes: Mapping[str, Node], points: Mapping[str, tuple[Any, ...]]) -> None:
        """Two points that do the same are a mistake: an axis sets keys that one of them does not use."""
        seen: dict[str, str] = {}
        for other in points:
            one = seen.setdefault(json.dumps(self.expansion.variants[other], sort_keys=True), other)
            if one != other:
                pairs = zip(axes.values(), points[one], points[other], strict=True)
                axis = next(axis for axis, value, another in pairs if value != another)
                what = f"{one} and {other} would be the same: nothing that they use is set by this axis"
                self._problem(what, axis.where)
                return

    def _problem(self, what: str, where: str | None = None) -> None:
        sweep = self.variant.child("sweep") or self.variant
        self.expansion.problems.append(Problem(where or sweep.where, what))


def _key(text: str) -> KeyPath:
    """Read the path of a swept key; the second part of one in `regions` is a name, also if it is a number."""
    first, *rest = dotted_path(text)
    return (first, str(rest[0]), *rest[1:]) if first == "regions" and rest else (first, *rest)


def _labels(values: Sequence[Any]) -> list[str]:
    """Name values in letters that file names can have; by their number where that does not tell them apart."""
    labels = [re.sub(r"[^\w.-]+", "_", str(value)).strip("_") for value in values]
    usable = len(set(labels)) == len(labels) and all(0 < len(label) <= 40 for label in labels)
    return labels if usable else [str(i) for i in range(1, len(values) + 1)]


def _uses(variant: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """The places in a variant that name a region, and the region."""
    operations = variant.get("operations")
    for i, operation in enumerate(operations if isinstance(operations, list) else ()):
        for kind in OPERATIONS.keys() & (operation.keys() if isinstance(operation, dict) else ()):
            yield from named_regions(operation[kind], ("operations", i, kind))
    for held in ("freeze", "train_only"):
        if isinstance(variant.get(held), str):
            yield (held,), variant[held]


def _with_regions(variant: Any, names: Mapping[str, str]) -> Any:
    """Return a variant with new names of regions."""
    for key, region in list(_uses(variant)):
        variant = with_value(variant, key, names.get(region, region))
    return variant


def _size(data: Any) -> int:
    """Return how much there is of it: its values, and a hundred characters of text count as one more."""
    if isinstance(data, (list, dict)):
        return 1 + sum(map(_size, data.values() if isinstance(data, dict) else data))
    return 1 + (len(data) // 100 if isinstance(data, str) else 0)


def _shared(one: KeyPath, other: KeyPath) -> int:
    """Return how many parts two key paths have in common from the start."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
