"""`combine:` other regions by & | - ~ and parentheses, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, RootModel, field_validator

from surgeon.recipe.plain_yaml import KeyPath
from surgeon.region.algebra import parse, renamed
from surgeon.region.region import Region
from surgeon.regions.base import Making, Planning, RegionKind, RegionPlan, no_masks, shapes_of

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec
    from surgeon.scores.base import Score


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
        return renamed(text, names)

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
