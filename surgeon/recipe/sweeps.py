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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from operator import getitem
from typing import Any, TypeVar

from pydantic import ValidationError

from surgeon.errors import did_you_mean
from surgeon.recipe.fields import Model
from surgeon.recipe.plain_yaml import DEEPEST, KeyPath, dotted_path, shared, with_value
from surgeon.recipe.problems import LONGEST_CHAIN, MOST_PROBLEMS, named_regions, objections
from surgeon.recipe.schema import AxisSpec, Recipe, RegionSpec, VariantSpec

# Values that all points together may have, some ten thousand points: more would fill the memory before the plan could
# say how long they take.
_LARGEST = 200_000

Spec = TypeVar("Spec", bound=Model)


@dataclass(frozen=True)
class Sweep:
    """The axes of a grid with their values, and the variant at each point with its value on each axis."""

    axes: Mapping[str, tuple[Any, ...]]
    points: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Choice:
    """At a point, `keys` of regions, or of the variant itself, take a value; `at` is where the recipe gives it."""

    axis: int
    label: str
    keys: Sequence[KeyPath]
    value: Any
    at: KeyPath

    def is_of(self, region: str) -> bool:
        """True if it sets a key of this region."""
        return any(key[:2] == ("regions", region) for key in self.keys)


@dataclass(frozen=True)
class Copy:
    """A variant or a region at a point: its name in the recipe, and what is chosen for it."""

    origin: str
    choices: Sequence[Choice]

    def written(self, key: KeyPath) -> KeyPath:
        """Return where the recipe gives the value that decides on a key of the copy."""
        own = ("regions", self.origin, *key[2:]) if key[0] == "regions" else key[2:]
        return max(self.choices, key=lambda choice: (max(shared(key, own) for key in choice.keys), choice.axis)).at


@dataclass
class Expansion:
    """The regions and variants of a recipe, points in place of sweeps; and what is wrong with sweeps, with its key.

    `copies` are those that sweeps added, by `("variants", NAME)` or `("regions", NAME)`.
    """

    regions: dict[str, RegionSpec]
    variants: dict[str, VariantSpec] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    copies: dict[KeyPath, Copy] = field(default_factory=dict)
    problems: list[tuple[KeyPath, str]] = field(default_factory=list)
    size: int = 0  # values of all that was added


def expand(recipe: Recipe) -> Expansion:
    """Make the points of all sweeps of a valid recipe."""
    expansion = Expansion(dict(recipe.regions))
    for name, variant in recipe.variants.items():
        if not variant.sweep:
            expansion.variants[name] = variant
            continue
        try:
            expansion.sweeps[name] = _Grid(name, variant, recipe, expansion).expanded()
        except _NotMade as error:
            expansion.problems += error.problems
    return expansion


class _NotMade(Exception):
    """A grid cannot be made: what is wrong with one point is wrong with its neighbours."""

    def __init__(self, *problems: tuple[KeyPath, str]) -> None:
        super().__init__(*problems)
        self.problems = problems


@dataclass
class _Grid:
    """The sweep of the variant `name` of a recipe.

    `told` has the values, and the keys in them, that are known to be wrong, with the copy of which that was told.
    """

    name: str
    variant: VariantSpec
    recipe: Recipe
    expansion: Expansion
    told: dict[tuple[KeyPath, KeyPath], KeyPath] = field(default_factory=dict)

    @property
    def key(self) -> KeyPath:
        """Where the sweep stands."""
        return "variants", self.name, "sweep"

    def expanded(self) -> Sweep:
        """Add a variant for each point, with the regions that it uses.

        Raises:
            _NotMade: an axis cannot be swept; they are too many; or one of them has no name or no place.
        """
        wrong = [problem for name in self.variant.sweep for problem in self._axis_problems(name)]
        if wrong:
            raise _NotMade(*wrong)
        axes = [self._axis(number, name) for number, name in enumerate(self.variant.sweep)]
        template = {key: value for key, value in _data(self.variant).items() if key != "sweep"}
        at_each = _size(template) + sum(len(choices[0].keys) for choices in axes)
        self._require_room(math.prod(map(len, axes)) * at_each)
        points: dict[str, tuple[Any, ...]] = {}
        for choices in itertools.product(*axes):
            point = "-".join([self.name, *(choice.label for choice in choices)])
            if point in self.recipe.variants or point in self.expansion.variants:
                raise _NotMade((self.key, f"'{point}' would be the name of two variants; rename one"))
            self._add_point(point, template, choices)
            self._require_room(0)
            points[point] = tuple(choice.value for choice in choices)
            if len(self.expansion.problems) > MOST_PROBLEMS:
                break
        if not self.told:
            self._refuse_twins(points)
        return Sweep({name: tuple(axis.to) for name, axis in self.variant.sweep.items()}, points)

    def _axis(self, number: int, name: str) -> list[Choice]:
        """Return what is chosen at each value of an axis."""
        axis, keys = self.variant.sweep[name], self._keys(name)
        labelled = enumerate(zip(axis.to, _labels(axis.to), strict=True))
        return [Choice(number, label, keys, value, (*self.key, name, "to", i)) for i, (value, label) in labelled]

    def _keys(self, axis: str) -> list[KeyPath]:
        keys = self.variant.sweep[axis].set
        return [_swept_key(text) for text in ([keys] if isinstance(keys, str) else keys)]

    def _axis_problems(self, name: str) -> Iterator[tuple[KeyPath, str]]:
        """Find keys of an axis that cannot be swept, and values that it has twice."""
        axis, at = self.variant.sweep[name], (*self.key, name)
        yield from (((*at, "set"), what) for key in self._keys(name) for what in self._not_swept(key))
        yield from (((*at, "to", i), f"the value {axis.to[i]} is given twice") for i in _repeated(axis))

    def _not_swept(self, key: KeyPath) -> Iterator[str]:
        """Say why a key cannot be swept, if it cannot."""
        first, *rest = key
        regions = self.recipe.regions
        if first == "regions" and 1 < len(rest) < DEEPEST:
            if rest[0] not in regions:
                yield f"no region '{rest[0]}'{did_you_mean(str(rest[0]), itertools.islice(regions, 1000))}"
        elif first != "operations" or not 0 < len(rest) < DEEPEST:
            text = ".".join(map(str, key))
            yield f"'{text}' cannot be swept: give a key of a region or operation, such as regions.core.select.top"

    def _require_room(self, values: int) -> None:
        if self.expansion.size + values > _LARGEST:
            raise _NotMade((self.key, f"its points would have more than {_LARGEST:,} values in all"))

    def _add_point(self, point: str, template: Any, choices: Sequence[Choice]) -> None:
        key, copy = ("variants", point), Copy(self.name, choices)
        variant = self._valid(VariantSpec, key, _changed(template, choices, ("operations",), 0), copy)
        if variant is None:
            return
        names, data = self._add_regions(point, variant.regions, choices), _data(variant)
        for place, region in named_regions(variant):
            data = with_value(data, place, names.get(region, region))
        self.expansion.variants[point], self.expansion.copies[key] = VariantSpec.model_validate(data), copy
        self.expansion.size += _size(data)

    def _add_regions(self, point: str, used: Iterable[str], choices: Sequence[Choice]) -> dict[str, str]:
        """Add the regions that a point changes of those that it uses; returns their names there by those written."""
        specs: dict[str, RegionSpec] = {}
        parts: dict[str, list[str]] = {}
        waiting = list(used)
        while waiting:
            name = waiting.pop()
            spec = self._at_point(name, choices) if name in self.recipe.regions and name not in specs else None
            if spec is not None:
                specs[name], parts[name] = spec, self._followed(spec, choices)
                waiting += parts[name]
        try:
            order = list(TopologicalSorter(parts).static_order())
        except CycleError as error:
            what = f"at {point} region '{error.args[1][0]}' is made from itself, in a circle"
            raise _NotMade((self.key, what)) from None
        axes: dict[str, set[int]] = {}
        names: dict[str, str] = {}
        for name in order:
            own = {choice.axis for choice in choices if choice.is_of(name)}
            axes[name] = own.union(*(axes[part] for part in parts.get(name, ())))
            if axes[name] and name in specs:
                choices_of_it = [choice for choice in choices if choice.axis in axes[name]]
                names[name] = self._add_region(name, _renamed(specs[name], names), choices_of_it)
        return names

    def _at_point(self, name: str, choices: Sequence[Choice]) -> RegionSpec | None:
        """Return a region with the values of a point; None if they are not valid, which is told."""
        spec, own = self.recipe.regions[name], [choice for choice in choices if choice.is_of(name)]
        if not own:
            return spec
        key = ("regions", self._name(name, own, None))
        return self._valid(RegionSpec, key, _changed(_data(spec), own, ("regions", name), 2), Copy(name, own))

    def _followed(self, region: RegionSpec, choices: Sequence[Choice]) -> list[str]:
        """Return the regions that one is made from; the one whose score it takes only if that score is swept."""
        keys = (key for choice in choices for key in choice.keys)
        swept = {key[1] for key in keys if key[0] == "regions" and key[2] in ("score", "from")}
        parts, origin = region.kind.parents, region.from_
        for _ in range(LONGEST_CHAIN):
            if origin in swept and region.from_ is not None:
                return [*parts, region.from_]
            origin = self.recipe.regions[origin].from_ if origin in self.recipe.regions else None
        return [*parts]

    def _add_region(self, name: str, spec: RegionSpec, choices: Sequence[Choice]) -> str:
        """Add a region as it is at a point; equal ones are shared between points."""
        new = self._name(name, choices, spec)
        if new not in self.expansion.regions:
            self.expansion.regions[new], self.expansion.copies["regions", new] = spec, Copy(name, choices)
            self.expansion.size += _size(_data(spec))
        return new

    def _name(self, name: str, choices: Sequence[Choice], spec: RegionSpec | None) -> str:
        """Name a region by the values that make it; no other than an equal one has that name already."""
        labels = {choice.axis: choice.label for choice in choices}
        new = "-".join([name, *(labels[axis] for axis in sorted(labels))])
        while new in self.expansion.regions and self.expansion.regions[new] != spec:
            new = f"{self.name}.{new}"
        return new

    def _valid(self, schema: type[Spec], key: KeyPath, data: Any, copy: Copy) -> Spec | None:
        """Return a variant or region with the values of a point; what is wrong with a value is told once."""
        try:
            return schema.model_validate(data)
        except ValidationError as error:
            for at, what in objections(error, {key[0]: {key[1]: data}}, key):
                problem = copy.written(at), what
                of_this = self.told.setdefault((copy.written(at), at[2:]), key) == key  # and not of another point
                if of_this and problem not in self.expansion.problems:
                    self.expansion.problems.append(problem)
            return None

    def _refuse_twins(self, points: Mapping[str, tuple[Any, ...]]) -> None:
        """Two points that do the same are a mistake: an axis sets keys that one of them does not use."""
        seen: dict[str, str] = {}
        for other in points:
            one = seen.setdefault(self.expansion.variants[other].model_dump_json(), other)
            if one != other:
                pairs = zip(self.variant.sweep, points[one], points[other], strict=True)
                axis = next(name for name, value, another in pairs if _text(value) != _text(another))
                what = f"{one} and {other} would be the same: nothing that they use is set by this axis"
                raise _NotMade(((*self.key, axis), what))


def _changed(data: Any, choices: Iterable[Choice], within: KeyPath, skipped: int) -> Any:
    """Return the data of a variant or region with the values of a point.

    Keys that do not begin with `within` are of something else; `skipped` parts of the others lead to the data.
    """
    for choice in choices:
        for key in choice.keys:
            try:
                data = with_value(data, key[skipped:], choice.value) if key[: len(within)] == within else data
            except LookupError:
                what = f"the recipe has no such place as {'.'.join(map(str, key))}"
                raise _NotMade(((*choice.at[:4], "set"), what)) from None
    return data


def _renamed(spec: RegionSpec, names: Mapping[str, str]) -> RegionSpec:
    """Return a region with new names for those that it is made from."""
    kind, data = spec.kind, _data(spec)
    for place in {place for place, _ in kind.mentioned(data[kind.key])}:
        text = reduce(getitem, place, data[kind.key])
        data = with_value(data, (kind.key, *place), kind.renamed(text, names))
    if spec.from_ is not None:
        data["from"] = names.get(spec.from_, spec.from_)
    return RegionSpec.model_validate(data)


def _data(spec: Model) -> dict[str, Any]:
    """Return a variant or region as plain data, as it was given."""
    return spec.model_dump(by_alias=True, exclude_unset=True)


def _swept_key(text: str) -> KeyPath:
    """Read the path of a swept key; the second part of one in `regions` is a name, also if it is a number."""
    first, *rest = dotted_path(text)
    return (first, str(rest[0]), *rest[1:]) if first == "regions" and rest else (first, *rest)


def _repeated(axis: AxisSpec) -> Iterator[int]:
    """Yield the indices of values that an axis has already."""
    seen: dict[str, int] = {}
    return (i for i, value in enumerate(axis.to) if seen.setdefault(_text(value), i) != i)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _labels(values: Sequence[Any]) -> list[str]:
    """Name values in letters that file names can have; by their number where that does not tell them apart."""
    labels = [re.sub(r"[^\w.-]+", "_", str(value)).strip("_") for value in values]
    usable = len(set(labels)) == len(labels) and all(0 < len(label) <= 40 for label in labels)
    return labels if usable else [str(i) for i in range(1, len(values) + 1)]


def _size(data: Any) -> int:
    """Return how much there is of it: its values, and a hundred characters of text count as one more."""
    if isinstance(data, (list, dict)):
        return 1 + sum(map(_size, data.values() if isinstance(data, dict) else data))
    return 1 + (len(data) // 100 if isinstance(data, str) else 0)
