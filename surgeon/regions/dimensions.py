"""`dimensions:` the fullest rows and columns of each tensor of a region, or its fullest residual dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.recipe.fields import Model
from surgeon.recipe.plain_yaml import KeyPath
from surgeon.region.coordinates import fullest_lines, residual_dimensions
from surgeon.region.dimensions import hidden_size
from surgeon.region.region import Region
from surgeon.regions.base import Making, Planning, RegionKind, RegionPlan, shapes_of

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec
    from surgeon.scores.base import Score


class Dimensions(Model, RegionKind):
    """The fullest rows and columns of each tensor of a region, or its fullest residual dimensions."""

    of: str = Field(description="the region whose entries are counted")
    rows: Annotated[int, Field(ge=0)] = Field(0, description="rows per tensor")
    columns: Annotated[int, Field(ge=0)] = Field(0, description="columns per tensor")
    residual: Annotated[int, Field(ge=0)] = Field(0, description="residual dimensions, the same in all tensors")
    random: bool = Field(False, description="the same number of random others instead: the control")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of `random`")

    key: ClassVar[str] = "dimensions"
    description: ClassVar[str] = "the fullest rows, columns or dimensions of a region"

    @model_validator(mode="after")
    def _some(self) -> Dimensions:
        if bool(self.residual) == bool(self.rows or self.columns):
            raise ValueError("give either residual, or rows and columns")
        return self

    @classmethod
    def mentioned(cls, value: Any) -> Iterator[tuple[KeyPath, str]]:
        """Yield the region whose entries are counted."""
        return mentioned_of(value)

    @property
    def drawn_with(self) -> int | None:
        """The seed of random dimensions."""
        return self.seed if self.random else None

    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Tell the tensors, those of the region; each line has at most as many entries as the longest axis."""
        of = plans[self.of]
        for key, most in self._most(planning, of).items():
            asked = getattr(self, key)
            if of.tensors and asked * (2 if self.random else 1) > most:
                counted = "residual dimensions" if key == "residual" else key
                beside = " at random besides the fullest" if self.random else ""
                what = f"{asked} {counted}{beside}: the tensors of region '{of.name}' have at most {most}"
                planning.problem(("regions", name, "dimensions", key), what)
        count = self.rows + self.columns + self.residual
        most = sum(min(info.numel, count * max(info.shape, default=1)) for info in of.tensors)
        return RegionPlan(name, spec, of.tensors, of.places, most, False)

    def _most(self, planning: Planning, of: RegionPlan) -> dict[str, int]:
        """Return how many there are of each; a random control needs as many others beside the fullest."""
        shapes = shapes_of(of.tensors)
        rows = (math.prod(shape[:-1]) if len(shape) > 1 else shape[0] for shape in shapes.values() if shape)
        return {
            "rows": max(rows, default=0),
            "columns": max((shape[-1] for shape in shapes.values() if len(shape) > 1), default=0),
            "residual": hidden_size(shapes, planning.places(of.tensors)) or 0,
        }

    def make(self, making: Making, plan: RegionPlan) -> Region:
        """Count the region's entries and take the fullest lines, or others."""
        region, checkpoint = making.part(self.of), making.checkpoint
        if self.residual:
            places = anatomy_of(checkpoint).places
            return residual_dimensions(region, self.residual, checkpoint.config, self.drawn_with, places, plan.drawn_as)
        return fullest_lines(region, self.rows, self.columns, self.drawn_with, plan.drawn_as)

    def described(self, score: Score | None, named: Callable[[str], str]) -> list[str]:
        """Return which dimensions they are."""
        fullest = "random dimensions, the same number as the fullest" if self.random else "the fullest dimensions"
        return [f"{fullest} in the region {self.of}"]


def mentioned_of(value: Any) -> Iterator[tuple[KeyPath, str]]:
    """Yield the region that stands under `of`."""
    of = value.get("of") if isinstance(value, dict) else None
    if isinstance(of, str):
        yield ("of",), of
