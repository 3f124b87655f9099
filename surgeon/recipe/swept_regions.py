"""The regions of a recipe as they are at the points of a sweep: copies of those that a swept key changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from surgeon.kinds import kinds
from surgeon.recipe.lines import KeyPath, Node, plain, replaced, size
from surgeon.recipe.references import LONGEST_CHAIN, mentions


@dataclass(frozen=True)
class Choice:
    """At one point: a key of the recipe takes a value, which is one of an axis; `given` is where the key is named."""

    axis: int
    label: str
    key: KeyPath
    value: Node
    given: Node

    @property
    def dotted(self) -> str:
        """The key as it is written."""
        return ".".join(str(part) for part in self.key)


@dataclass
class SweptRegions:
    """The regions that are written, and those that points add; equal ones are shared between points."""

    written: Mapping[str, Node]
    added: dict[str, Node] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)  # of what is added
    values: int = 0  # of all that was added or looked at
    _parts: dict[str, list[str]] = field(default_factory=dict)

    def at_point(self, choices: Sequence[Choice], variant: str) -> RegionsAtPoint:
        """Return the regions as they are where these choices are made for a variant."""
        return RegionsAtPoint(self, choices, variant)

    def get(self, name: str) -> Node | None:
        """Return a region that is written or was added."""
        return self.written.get(name) or self.added.get(name)

    def parts(self, name: str) -> list[str]:
        """Return the regions that a written one is made from."""
        if name not in self._parts:
            self._parts[name] = _parts_of(self.written[name])
        return self._parts[name]


@dataclass
class RegionsAtPoint:
    """The regions at one point of a grid; each is followed to those that it is made from once."""

    regions: SweptRegions
    choices: Sequence[Choice]
    variant: str
    misplaced: Choice | None = None  # one whose key has no place in its region
    _known: dict[str, tuple[str, frozenset[int]]] = field(default_factory=dict)

    def name_of(self, name: str) -> str:
        """Return the name of a region as it is at this point, adding it if need be."""
        return self._at(name, 0)[0]

    def _at(self, name: str, depth: int) -> tuple[str, frozenset[int]]:
        """Return the name of a region at this point, and the axes that change it."""
        if name not in self._known:
            self._known[name] = name, frozenset()  # holds for a circle, and for what is not there: refused elsewhere
            if name in self.regions.written and depth < LONGEST_CHAIN:
                self._known[name] = self._followed(name, depth)
        return self._known[name]

    def _followed(self, name: str, depth: int) -> tuple[str, frozenset[int]]:
        written = self.regions.written[name]
        own = [choice for choice in self.choices if choice.key[:2] == ("regions", name)]
        spec = self._with_values(written, own)
        parts = _parts_of(spec) if own else list(self.regions.parts(name))
        self.regions.values += 1 + len(parts)
        origin = _text_at(spec, "from")
        if origin is not None and self._score_is_swept(origin):
            parts.append(origin)
        found = {part: self._at(part, depth + 1) for part in parts}
        axes = frozenset(choice.axis for choice in own).union(*(swept for _, swept in found.values()))
        if not axes:
            return name, axes
        return self._add(name, _renamed(spec, {old: new for old, (new, _) in found.items()}), axes), axes

    def _with_values(self, spec: Node, choices: Sequence[Choice]) -> Node:
        """Return a region in which swept keys have their values."""
        for choice in choices:
            changed = replaced(spec, choice.key[2:], choice.value)
            if changed is None:
                self.misplaced = self.misplaced or choice
            else:
                spec = changed
        return spec

    def _add(self, name: str, spec: Node, axes: frozenset[int]) -> str:
        """Add a region under a name that tells the values which make it."""
        labels = {choice.axis: choice.label for choice in self.choices}
        new = "-".join([name, *(labels[axis] for axis in sorted(axes))])
        while self.regions.get(new) not in (None, spec):
            new = f"{self.variant}.{new}"
        if self.regions.get(new) is None:
            last = next(choice for choice in reversed(self.choices) if choice.axis in axes)
            self.regions.added[new], self.regions.origins[new] = Node(spec.value, last.value.where), name
            self.regions.values += size(spec)
        return new

    def _score_is_swept(self, name: str) -> bool:
        """Say whether the score that a region has or takes `from` another is not the same at all points."""
        for _ in range(LONGEST_CHAIN):
            if any(c.key[:2] == ("regions", name) and c.key[2] in ("score", "from") for c in self.choices):
                return True
            region = self.regions.written.get(name)
            origin = _text_at(region, "from") if region is not None else None
            if origin is None:
                return False
            name = origin
        return False


def _parts_of(spec: Node) -> list[str]:
    """Return the regions that a region is made from."""
    keys = kinds("surgeon.regions")
    data = plain(Node({key: child for key in keys if (child := spec.child(key))}, spec.where))
    return [name for _, name in mentions(data)]


def _text_at(node: Node, key: str) -> str | None:
    child = node.child(key)
    return child.value if child is not None and isinstance(child.value, str) else None


def _renamed(spec: Node, names: Mapping[str, str]) -> Node:
    """Give the regions that a region is made from their names at a point."""
    for key, kind in kinds("surgeon.regions").items():
        child = spec.child(key)
        for below in {below for below, _ in kind.mentioned(plain(child))} if child is not None else ():
            node = _below(spec, (key, *below))
            spec = replaced(spec, (key, *below), Node(kind.renamed(node.value, names), node.where)) or spec
    origin = _text_at(spec, "from")
    if origin is not None and origin in names:
        spec = replaced(spec, ("from",), Node(names[origin], _below(spec, ("from",)).where)) or spec
    return spec


def _below(node: Node, path: KeyPath) -> Node:
    for key in path:
        node = node.child(key) or Node(None, node.where)
    return node
