"""`entries:` given by their indices: one entry, or whole rows and columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, RootModel, model_validator

from surgeon.anatomy.scope import scope
from surgeon.checkpoint.storage import TensorInfo
from surgeon.recipe.fields import Model
from surgeon.region.mask import Indices, Mask, encode_indices
from surgeon.region.region import Region
from surgeon.regions.base import Planning, RegionKind, RegionPlan, shapes_of
from surgeon.regions.outlines import unmatched

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec


class EntriesOf(Model):
    """Entries given by their place: one entry, or whole rows and columns, of every tensor that `tensor` names."""

    tensor: str = Field(description="a role, a tensor's name, or a pattern of names")
    index: Annotated[list[int], Field(min_length=1)] | None = Field(None, description="one entry, an index per axis")
    rows: list[int] = Field([], description="indices of all axes but the last; a vector has one entry per row")
    columns: list[int] = Field([], description="indices of the last axis")

    @model_validator(mode="after")
    def _one_place(self) -> EntriesOf:
        if (self.index is None) == (not self.rows and not self.columns):
            raise ValueError("give either index, or rows and columns")
        return self

    def indices(self, info: TensorInfo) -> Indices:
        """Return the sorted flat indices in a tensor.

        Raises:
            ValueError: they lie outside of it.
        """
        if self.index is not None:
            return entry(info.shape, self.index)
        return lines(info.shape, self.rows, self.columns)


class Entries(RootModel[Annotated[list[EntriesOf], Field(min_length=1)]], RegionKind):
    """Entries by their place."""

    model_config = ConfigDict(frozen=True, strict=True)
    key: ClassVar[str] = "entries"
    description: ClassVar[str] = "entries by their place"

    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Tell the tensors; masks are made when they are asked for, so that a sweep over columns keeps none."""
        checkpoint, items = planning.checkpoint, dict[str, list[EntriesOf]]()
        for i, item in enumerate(self.root):
            tensors = scope(checkpoint, [item.tensor]).tensors
            if not tensors:
                planning.problem(("regions", name, "entries", i, "tensor"), unmatched(checkpoint, item.tensor))
            for info in tensors:
                try:
                    item.indices(info)
                except ValueError as error:
                    planning.problem(("regions", name, "entries", i), f"tensor '{info.name}': {error}")
                    break
                items.setdefault(info.name, []).append(item)

        def mask(tensor: str) -> Mask:
            info = checkpoint.info(tensor)
            every = np.concatenate([item.indices(info) for item in items[tensor]])
            return encode_indices(np.unique(every), info.shape)

        region = Region(shapes_of(checkpoint.info(tensor) for tensor in items), mask)
        return planning.whole(name, spec, region)


def lines(shape: tuple[int, ...], rows: Sequence[int], columns: Sequence[int]) -> Indices:
    """Return the flat indices of whole rows and columns.

    A row is what stands at one index of all axes but the last, a column what stands at one index of the last axis; a
    vector has one entry per row and no columns.

    Raises:
        ValueError: one of them is outside the shape.
    """
    mask = np.zeros(math.prod(shape), dtype=np.bool_).reshape(-1, shape[-1] if len(shape) > 1 else 1)
    for what, chosen, count in (("row", rows, mask.shape[0]), ("column", columns, mask.shape[1])):
        for index in chosen:
            if not 0 <= index < count:
                raise ValueError(f"{what} {index} is outside shape {list(shape)}")
    mask[list(rows)] = True
    mask[:, list(columns)] = True
    return np.flatnonzero(mask)


def entry(shape: tuple[int, ...], index: Sequence[int]) -> Indices:
    """Return the flat index of one entry.

    Raises:
        ValueError: the index does not fit the shape.
    """
    if len(index) != len(shape) or not all(0 <= i < length for i, length in zip(index, shape, strict=True)):
        raise ValueError(f"index {list(index)} is outside shape {list(shape)}")
    return np.array([np.ravel_multi_index(tuple(index), shape)], dtype=np.int64)
