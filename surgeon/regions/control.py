"""`control:` as many entries as another region has in each tensor, drawn from those that are not zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import present
from surgeon.recipe.fields import Model
from surgeon.recipe.plain_yaml import KeyPath
from surgeon.region.controls import draw_control
from surgeon.region.region import Indices, Region, encode_indices
from surgeon.regions.base import SUM, Drawing, Making, Planning, Provenance, RegionKind, RegionPlan
from surgeon.regions.cut import Cut, region_from
from surgeon.regions.dimensions import mentioned_of

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec
    from surgeon.scores.base import Score

_HOW = {"random": "at random", "bottom": "of the lowest score", "magnitude": "of the largest size"}


class Control(Model, RegionKind):
    """As many entries as another region has in each tensor, drawn from those that are not zero: what it must beat."""

    of: str = Field(description="the region that is compared with")
    draw: Literal["random", "bottom", "magnitude"] = Field(
        "random", description="random entries, those of lowest score, or the largest by absolute value"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of `draw: random`")
    matched: Literal["count", "l2"] = Field(
        "count", description="the same number of entries in each tensor, or as many as give the same L2 norm"
    )

    key: ClassVar[str] = "control"
    description: ClassVar[str] = "the same number of entries in each tensor of another region"

    @classmethod
    def mentioned(cls, value: Any) -> Iterator[tuple[KeyPath, str]]:
        """Yield the region that is compared with."""
        return mentioned_of(value)

    @property
    def drawn_with(self) -> int | None:
        """The seed of a random draw."""
        return self.seed if self.draw == "random" else None

    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Tell the tensors and at most how many entries; the lowest need the score that the region is selected by."""
        of = plans[self.of]
        score = of.score if self.draw == "bottom" else None
        if self.draw == "bottom" and score is None:
            what = f"region '{self.of}' is not selected by a score: `draw: bottom` needs one"
            planning.problem(("regions", name, "control", "draw"), what)
        most = of.entries if self.matched == "count" else of.numel
        return RegionPlan(name, spec, of.tensors, of.places, most, False, score)

    def drawing(self, checkpoint: Checkpoint, plan: RegionPlan, plans: Mapping[str, RegionPlan]) -> Drawing | None:
        """Return how the lowest are drawn: by the scores that the region itself goes by."""
        if self.draw != "bottom":
            return None
        of = plans[self.of].select
        label = of.own if of is not None else None
        return Drawing(plan, self.of, label or SUM, partial(self.indices, checkpoint))

    def make(self, making: Making, plan: RegionPlan) -> Region:
        """Draw the control, tensor by tensor; one of a selected region is kept as that is."""
        if making.plans[self.of].select is None:
            return self._made(making, plan)
        return making.kept(plan, lambda: self._made(making, plan))

    def _made(self, making: Making, plan: RegionPlan) -> Region:
        ahead = making.ahead(plan)
        if ahead is not None:
            return ahead
        of, checkpoint = making.part(self.of), making.checkpoint
        drawing = self.drawing(checkpoint, plan, making.plans)
        if drawing is None:
            return Region(
                of.shapes,
                lambda name: encode_indices(self.indices(checkpoint, of, name, region=plan.drawn_as), of.shapes[name]),
            )
        return region_from(making.stream(plan), Cut([], present(plan.score).labels, [drawing], {self.of: of}))

    def indices(
        self, checkpoint: Checkpoint, of: Region, name: str, scores: NDArray[np.float32] | None = None, region: str = ""
    ) -> Indices:
        """Return the sorted flat indices drawn in one tensor of the region it is a control of.

        `scores` are the tensor's, which `draw: bottom` goes by; `region` is the control's own name, by which a random
        one differs from others.
        """
        values, there = checkpoint.array(name).reshape(-1), of.indices(name)
        removed = float(np.sum(values[there].astype(np.float64) ** 2)) if self.matched == "l2" else None
        lowest = scores if self.draw == "bottom" else None
        return draw_control(
            name, values, there.size, self.draw, seed=self.seed, region=region, scores=lowest, removed=removed
        )

    def bytes_to_make(self, largest: int) -> int:
        """Return the memory of a draw: more where norms are matched."""
        return largest * (32 if self.matched == "count" else 56)

    def described(self, score: Score | None, named: Callable[[str], str]) -> list[str]:
        """Return what is drawn, and how."""
        matched = "as many entries" if self.matched == "count" else "entries of the same norm"
        drawn = f"{matched} in each tensor, of those that are not zero, {_HOW[self.draw]}"
        return [f"control of the region {self.of}: {drawn}"]

    def provenance(self, plan: RegionPlan, source: Provenance) -> dict[str, Any]:
        """Return how it was drawn, and from what; of a region that is not selected what every other kind says."""
        of = source.plans[self.of]
        if of.select is None:
            return super().provenance(plan, source)
        named = {"region": plan.drawn_as} if self.draw == "random" else {}
        return {"control": self.model_dump(), **named, "of": of.kind.provenance(of, source)}
