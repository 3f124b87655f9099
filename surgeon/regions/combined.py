"""`combine:` other regions by & | - ~ and parentheses, tensor by tensor: `core - norms`, `arabic & ~(core | bottom)`.

`~` binds tightest, then `-`, `&`, `|`, as in Python. A `-` inside a word belongs to the region's name, so that the
minus sign needs a space before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, RootModel, field_validator

from surgeon.recipe.plain_yaml import KeyPath
from surgeon.region.region import Region
from surgeon.regions.base import Making, Planning, RegionKind, RegionPlan, no_masks, shapes_of

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec
    from surgeon.scores.base import Score


_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)|(?P<sign>[&|~()-]))")
_LOOSEST_FIRST = ("|", "&", "-")
MOST_SIGNS = 200  # of one expression, which is read and evaluated recursively: Python allows a thousand calls


class Combine(RootModel[str], RegionKind):
    """Other regions, with & | - ~ and parentheses: `core - norms`."""

    model_config = ConfigDict(frozen=True, strict=True)
    key: ClassVar[str] = "combine"
    description: ClassVar[str] = "other regions, with & | - ~ and parentheses: `core - norms`"

    @field_validator("root")
    @classmethod
    def _reads(cls, text: str) -> str:
        parse(text)
        return text

    @classmethod
    def mentioned(cls, value: Any) -> Iterator[tuple[KeyPath, str]]:
        """Yield the regions of the expression; none if it cannot be read."""
        if isinstance(value, str):
            try:
                yield from (((), name) for name in parse(value).names())
            except ValueError:
                return  # the schema says what is wrong with it

    @classmethod
    def renamed(cls, text: str, names: Mapping[str, str]) -> str:
        """Return the expression over regions with new names."""
        return re.sub(r"[A-Za-z0-9][A-Za-z0-9._-]*", lambda match: names.get(match[0], match[0]), text)

    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Tell the tensors by the expression over the parts' shapes; entries are at most those of all parts."""
        parts = {label: plans[label] for label in self.parents}
        shapes = {label: Region(shapes_of(part.tensors), no_masks) for label, part in parts.items()}
        tensors = tuple(planning.checkpoint.tensors[tensor] for tensor in parse(self.root).evaluate(shapes))
        numel = sum(info.numel for info in tensors)
        most = numel if "~" in self.root else min(numel, sum(part.entries for part in parts.values()))
        return RegionPlan(name, spec, tensors, planning.places(tensors), most, False)

    def make(self, making: Making, plan: RegionPlan) -> Region:
        """Evaluate the expression."""
        return parse(self.root).evaluate({part: making.part(part) for part in self.parents})

    def described(self, score: Score | None, named: Callable[[str], str]) -> list[str]:
        """Return the expression."""
        return [self.root]


@dataclass(frozen=True)
class Expression:
    """A region by name, or a sign (`~ - & |`) with the one or two expressions that it combines."""

    name: str = ""
    sign: str = ""
    parts: tuple[Expression, ...] = ()

    def names(self) -> Iterator[str]:
        """Names of the regions in the expression, from left to right."""
        if self.name:
            yield self.name
        for part in self.parts:
            yield from part.names()

    def evaluate(self, regions: Mapping[str, Region]) -> Region:
        """Combine the regions, lazily."""
        values = [part.evaluate(regions) for part in self.parts]
        if self.sign == "~":
            return ~values[0]
        if self.sign == "-":
            return values[0] - values[1]
        if self.sign == "&":
            return values[0] & values[1]
        return values[0] | values[1] if self.sign else regions[self.name]


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        ValueError: it is not one; the message says where it breaks.
    """
    tokens, signs, position = [], 0, 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} cannot be read at {text[position:].strip()!r}; use names, & | - ~ and ( )")
        tokens.append(match[0].strip())
        position = match.end()
        signs += match["sign"] is not None
        if signs > MOST_SIGNS:
            raise ValueError(f"more than {MOST_SIGNS} signs; give parts of the expression names of their own")
    result = _binary(tokens, 0, text)
    if tokens:
        raise ValueError(f"{text!r} cannot be read at {tokens[0]!r}; two regions need & | or - between them")
    return result


def _binary(tokens: list[str], level: int, text: str) -> Expression:
    if level == len(_LOOSEST_FIRST):
        return _single(tokens, text)
    left = _binary(tokens, level + 1, text)
    while tokens and tokens[0] == _LOOSEST_FIRST[level]:
        sign = tokens.pop(0)
        left = Expression(sign=sign, parts=(left, _binary(tokens, level + 1, text)))
    return left


def _single(tokens: list[str], text: str) -> Expression:
    token = tokens.pop(0) if tokens else ""
    if token == "~":
        return Expression(sign="~", parts=(_single(tokens, text),))
    if token == "(":
        inner = _binary(tokens, 0, text)
        if not tokens or tokens.pop(0) != ")":
            raise ValueError(f"{text!r} lacks a closing parenthesis")
        return inner
    if not token or not token[0].isalnum():
        where = f"before {token!r}" if token else "at its end"
        raise ValueError(f"{text!r} lacks a region's name {where}")
    return Expression(name=token)
