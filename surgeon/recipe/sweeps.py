"""Sweeps: a variant over a grid of values, expanded into plain variants and regions before anything else sees them.

Every point of the grid becomes a variant of its own, named by the variant and its values: `zeroed-core-0.01`. A
region that a swept key belongs to, or that is made from such a region, gets a copy named in the same way:
`core-0.01`. Scores, plans and measurements then know nothing of sweeps. What does not fit the schema is passed
over: the schema, which comes later, says so.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgeon.errors import Problem, did_you_mean
from surgeon.operations import OPERATIONS
from surgeon.recipe.lines import KeyPath, Node, dotted_path, fingerprint, plain, replaced, size
from surgeon.recipe.plain_yaml import DEEPEST
from surgeon.recipe.swept_regions import Choice, SweptRegions

_LARGEST = 200_000  # values that all points together may have: some ten thousand points


@dataclass(frozen=True)
class Sweep:
    """The axes of a grid with their values, and the variant at each point with its value on each axis."""

    axes: Mapping[str, tuple[Any, ...]]
    points: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Expansion:
    """A recipe with the variants and regions that its sweeps add.

    `origins` leads from the key path of each of these to that of what it is a copy of. `complete` is False if a sweep
    could not be expanded.
    """

    tree: Node
    sweeps: Mapping[str, Sweep]
    origins: Mapping[KeyPath, KeyPath]
    complete: bool


def expand(tree: Node, problems: list[Problem]) -> Expansion:
    """Add the points of a recipe's sweeps to it; `problems` gains what cannot be expanded."""
    variants = tree.mapping("variants")
    swept = {name: variant for name, variant in variants.items() if variant.mapping("sweep")}
    if not swept:
        return Expansion(tree, {}, {}, True)
    regions = SweptRegions(tree.mapping("regions"))
    grids = _Grids(problems, regions, frozenset(variants))
    sweeps = {name: grids.sweep(name, variant) for name, variant in swept.items()}
    for name, added in (("regions", regions.added), ("variants", grids.variants)):
        if added:
            there = tree.child(name)
            merged = Node({**tree.mapping(name), **added}, there.where if there is not None else tree.where)
            tree = replaced(tree, (name,), merged) or tree
    origins: dict[KeyPath, KeyPath] = {("regions", new): ("regions", old) for new, old in regions.origins.items()}
    origins |= {("variants", new): ("variants", old) for new, old in grids.origins.items()}
    done = {name: sweep for name, sweep in sweeps.items() if sweep is not None}
    return Expansion(tree, done, origins, len(done) == len(sweeps))


@dataclass(frozen=True)
class _Axis:
    """The keys that an axis sets, named at `given`, and the values that they all take."""

    number: int
    keys: Sequence[KeyPath]
    given: Node
    values: Sequence[Node]
    labels: Sequence[str]

    def choices(self, i: int) -> Iterator[Choice]:
        """What is set at a place of the axis."""
        for key in self.keys:
            yield Choice(self.number, self.labels[i], key, self.values[i], self.given)


@dataclass
class _Grids:
    """The variants that sweeps add, and the regions that these use."""

    problems: list[Problem]
    regions: SweptRegions
    taken: frozenset[str]
    variants: dict[str, Node] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    values: int = 0  # of all variants added

    def sweep(self, name: str, variant: Node) -> Sweep | None:
        """Add a variant for each point of one sweep; None if it cannot be expanded."""
        sweep = variant.child("sweep") or variant
        axes = variant.mapping("sweep")
        template = _without_sweep(variant)
        grid = [self._axis(number, axis) for number, axis in enumerate(axes.values())]
        if not all(axis.values for axis in grid):
            return None
        at_each = size(template) + sum(len(axis.keys) for axis in grid)
        if not self._has_room(sweep, math.prod(len(axis.values) for axis in grid) * at_each):
            return None
        points: dict[str, tuple[Node, ...]] = {}
        for place in itertools.product(*(range(len(axis.values)) for axis in grid)):
            point = "-".join([name, *(axis.labels[i] for axis, i in zip(grid, place, strict=True))])
            if point in self.taken or point in self.variants:
                self._problem(sweep, f"'{point}' would be the name of two variants; rename one")
                return None
            choices = [choice for axis, i in zip(grid, place, strict=True) for choice in axis.choices(i)]
            if not self._add_point(name, point, template, choices):
                return None  # what is wrong with one point is wrong with its neighbours
            if not self._has_room(sweep, 0):
                return None
            points[point] = tuple(axis.values[i] for axis, i in zip(grid, place, strict=True))
        self._refuse_twins(axes, points)
        return Sweep(
            {label: tuple(plain(value) for value in axis.values) for label, axis in zip(axes, grid, strict=True)},
            {point: tuple(plain(value) for value in along) for point, along in points.items()},
        )

    def _has_room(self, sweep: Node, values: int) -> bool:
        fits = self.values + self.regions.values + values <= _LARGEST
        if not fits:
            self._problem(sweep, f"its points would have more than {_LARGEST:,} values in all")
        return fits

    def _axis(self, number: int, axis: Node) -> _Axis:
        """Return one axis; without values if it cannot be told what it sets."""
        given, to = axis.child("set") or axis, axis.child("to") or axis
        texts = [node.value for node in (given, *given.items()) if isinstance(node.value, str)]
        keys = [_key(text) for text in texts]
        wrong = [what for text, key in zip(texts, keys, strict=True) for what in self._not_swept(text, key)]
        for what in wrong:
            self._problem(given, what)
        values = list(to.items())
        twice = list(_repeated(values))
        for value in twice:
            self._problem(value, f"the value {plain(value)} is given twice")
        if wrong or twice or not texts:
            return _Axis(number, [], given, [], [])
        return _Axis(number, keys, given, values, _labels([plain(value) for value in values]))

    def _not_swept(self, text: str, key: KeyPath) -> Iterator[str]:
        """Say why a key cannot be swept, if it cannot."""
        first, *rest = key
        if first == "regions" and 1 < len(rest) < DEEPEST:
            known = self.regions.written
            if rest[0] not in known:
                yield f"no region '{rest[0]}'{did_you_mean(str(rest[0]), itertools.islice(known, 1000))}"
        elif first != "operations" or not 0 < len(rest) < DEEPEST:
            yield f"'{text}' cannot be swept: give a key of a region or operation, such as regions.core.select.top"

    def _add_point(self, name: str, point: str, template: Node, choices: Sequence[Choice]) -> bool:
        """Add the variant at one point, with the regions that it uses; False if a swept key has no place."""
        regions = self.regions.at_point(choices, name)
        made = template
        for choice in choices:
            if choice.key[0] == "operations":
                changed = replaced(made, choice.key, choice.value)
                if changed is None:
                    self._problem(choice.given, f"the recipe has no such place as {choice.dotted}")
                    return False
                made = changed
        for key, region in list(_uses(made)):
            made = replaced(made, key, Node(regions.name_of(str(region.value)), region.where)) or made
        if regions.misplaced is not None:
            choice = regions.misplaced
            self._problem(choice.given, f"the recipe has no such place as {choice.dotted}")
            return False
        self.variants[point], self.origins[point] = made, name
        self.values += size(made)
        return True

    def _refuse_twins(self, axes: Mapping[str, Node], points: Mapping[str, tuple[Node, ...]]) -> None:
        """Two points that do the same are a mistake: an axis sets keys that one of them does not use."""
        seen: dict[Hashable, str] = {}
        for other in points:
            one = seen.setdefault(fingerprint(self.variants[other]), other)
            if one != other:
                pairs = zip(axes.values(), points[one], points[other], strict=True)
                axis = next(axis for axis, value, another in pairs if value != another)
                self._problem(axis, f"{one} and {other} would be the same: nothing that they use is set by this axis")
                return

    def _problem(self, node: Node, what: str) -> None:
        self.problems.append(Problem(node.where, what))


def _without_sweep(variant: Node) -> Node:
    """Return what is the same at all points, which are only measured unless it says otherwise."""
    entries = variant.value if isinstance(variant.value, Mapping) else {}  # what has a sweep is a mapping
    rest = {key: value for key, value in entries.items() if key != "sweep"}
    return Node({"write": Node(False, variant.where), **rest}, variant.where)


def _repeated(values: Sequence[Node]) -> Iterator[Node]:
    """The values that stood there before."""
    seen: set[Hashable] = set()
    for value in values:
        known = fingerprint(value)
        if known in seen:
            yield value
        seen.add(known)


def _key(text: str) -> KeyPath:
    """Read the path of a swept key; the second part of one in `regions` is a name, also if it is a number."""
    first, *rest = dotted_path(text)
    return (first, str(rest[0]), *rest[1:]) if first == "regions" and rest else (first, *rest)


def _labels(values: Sequence[Any]) -> list[str]:
    """Name values in letters that file names can have; by their number where that does not tell them apart."""
    labels = [re.sub(r"[^\w.-]+", "_", str(value)).strip("_") for value in values]
    usable = len(set(labels)) == len(labels) and all(0 < len(label) <= 40 for label in labels)
    return labels if usable else [str(i) for i in range(1, len(values) + 1)]


def _uses(variant: Node) -> Iterator[tuple[KeyPath, Node]]:
    """The places in a variant that name a region, and what stands there."""
    operations = variant.child("operations")
    for i, operation in enumerate(operations.items() if operations is not None else ()):
        for kind in OPERATIONS:
            region = operation.child(kind)
            if region is not None and isinstance(region.value, str):
                yield ("operations", i, kind), region
            for j, one in enumerate(region.items() if region is not None else ()):
                if isinstance(one.value, str):
                    yield ("operations", i, kind, j), one
    for polarity in ("freeze", "train_only"):
        held = variant.child(polarity)
        if held is not None and isinstance(held.value, str):
            yield (polarity,), held
