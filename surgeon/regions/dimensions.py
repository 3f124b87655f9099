"""`dimensions:` the fullest rows and columns of each tensor of a region, or its fullest residual dimensions.

A residual dimension is one row or column in each matrix that reads or writes the residual stream, and one entry in each
norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.naming import Place, places_of
from surgeon.recipe.fields import Model
from surgeon.recipe.plain_yaml import KeyPath
from surgeon.region.dimensions import along, hidden_size, residual_axis
from surgeon.region.mask import Indices, Mask, encode_indices, encode_mask
from surgeon.region.region import Region
from surgeon.regions.base import Making, Planning, RegionKind, RegionPlan, shapes_of
from surgeon.regions.entries import lines
from surgeon.seeds import generator

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


def fullest_lines(region: Region, rows: int, columns: int, control: int | None = None, label: str = "") -> Region:
    """Return, of each tensor, the `rows` and `columns` that hold most of a region's entries; ties go to the lower.

    With `control`, a seed, as many others are drawn at random instead, by seed and `label`.
    """

    def mask(name: str) -> Mask:  # made when it is asked for: a sweep over many counts keeps none of them
        shape = region.shapes[name]
        by_row, by_column = region.hits(name)
        top_rows = _top(by_row, rows, control, f"{label}:rows:{name}")
        top_columns = _top(by_column, columns if len(shape) > 1 else 0, control, f"{label}:columns:{name}")
        return encode_indices(lines(shape, top_rows.tolist(), top_columns.tolist()), shape)

    return Region(region.shapes, mask)


def residual_dimensions(
    region: Region,
    count: int,
    config: Mapping[str, Any],
    control: int | None = None,
    places: Mapping[str, Place] | None = None,
    label: str = "",
) -> Region:
    """Return the `count` residual dimensions that hold most of a region's entries, in all of its tensors.

    With `control`, a seed, as many others are drawn at random instead, by seed and `label`.
    """
    places = places or places_of(region.shapes, config)
    hidden = hidden_size(region.shapes, places)
    axes = {name: residual_axis(shape, places[name], hidden) for name, shape in region.shapes.items()}
    hits = np.zeros(hidden or 0, dtype=np.int64)
    for name, axis in axes.items():
        if axis is not None:
            hits += np.bincount(along(region.indices(name), region.shapes[name], axis), minlength=hits.size)
    top = _top(hits, count, control, f"{label}:residual")

    def mask(name: str) -> Mask:
        chosen, axis = np.zeros(region.shapes[name], dtype=np.bool_), axes[name]
        if axis is not None:
            np.moveaxis(chosen, axis, 0)[top] = True
        return encode_mask(chosen)

    return Region(region.shapes, mask)


def _top(hits: NDArray[np.int64], count: int, control: int | None, label: str) -> Indices:
    order = np.argsort(-hits, kind="stable")
    top, others = np.sort(order[:count]), np.sort(order[count:])
    if control is None or not count:
        return top
    return np.sort(generator(control, label).permutation(others)[:count])
