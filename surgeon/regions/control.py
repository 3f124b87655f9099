"""`control:` as many entries as another region has in each tensor, drawn from those that are not zero.

Zeroing what is zero already changes nothing, so that a control which holds zeros is smaller than it looks. These hold
none; matched by norm, they take as many entries as it needs to remove the same norm, however many those are.
"""

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
from surgeon.region.mask import Indices, encode_indices
from surgeon.region.region import Region
from surgeon.region.select import End, select_count, select_evenly
from surgeon.regions.base import SUM, Drawing, Making, Planning, Provenance, RegionKind, RegionPlan
from surgeon.regions.cut import Cut, region_from
from surgeon.regions.dimensions import mentioned_of
from surgeon.seeds import generator

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec
    from surgeon.scores.base import Score

Draw = Literal["random", "bottom", "magnitude"]
_HOW = {"random": "at random", "bottom": "of the lowest score", "magnitude": "of the largest size"}


class Control(Model, RegionKind):
    """As many entries as another region has in each tensor, drawn from those that are not zero: what it must beat."""

    of: str = Field(description="the region that is compared with")
    draw: Draw = Field("random", description="random entries, those of lowest score, or the largest by absolute value")
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

    def kept(self, plans: Mapping[str, RegionPlan]) -> bool:
        """True for one of a selected region, which is kept, too."""
        return plans[self.of].select is not None

    def make(self, making: Making, plan: RegionPlan) -> Region:
        """Draw the control, tensor by tensor."""
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
        values, selected = checkpoint.array(name).reshape(-1), of.indices(name)
        removed = float(np.sum(values[selected].astype(np.float64) ** 2)) if self.matched == "l2" else None
        return self.drawn(name, values, selected.size, region=region, scores=scores, removed=removed)

    def drawn(
        self,
        name: str,
        values: NDArray[Any],
        count: int,
        *,
        region: str = "",
        scores: NDArray[np.float32] | None = None,
        removed: float | None = None,
    ) -> Indices:
        """Return sorted flat indices of `count` entries of one tensor that are not zero, or of all if there are fewer.

        `random` draws them evenly, by (seed, region, name), so that controls of other names are other draws; `bottom`
        takes those of the lowest `scores` (float32, non-negative, of the tensor's size), `magnitude` those of the
        largest absolute value; ties go to the lower index. With `removed`, a sum of squares, as many are taken instead,
        in the same order, as bring the sum of their squares nearest to it. Memory: some 16 bytes per entry that is not
        zero, 40 with `removed`.
        """
        values = values.reshape(-1)
        candidates = np.flatnonzero(values != 0)
        count, label = min(count, candidates.size), f"control:{region}:{name}"
        if self.draw == "random":
            if removed is None:
                return candidates[select_evenly(candidates.size, count, self.seed, label)]
            order = generator(self.seed, label).permutation(candidates.size)
        else:
            lowest = self.draw == "bottom"
            keys = present(scores).reshape(-1)[candidates] if lowest else np.abs(values[candidates].astype(np.float32))
            if removed is None:
                end: End = "bottom" if lowest else "top"
                ((_, chosen),) = select_count(lambda _: keys, [(name, candidates.size)], count, end)
                return candidates[np.flatnonzero(chosen)]
            order = np.argsort(keys if lowest else -keys, kind="stable")
        count = _nearest(np.cumsum(values[candidates[order]].astype(np.float64) ** 2), removed)
        return np.sort(candidates[order[:count]])

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


def _nearest(sums: NDArray[np.float64], target: float) -> int:
    """Return how many entries to take, so that their growing sum is nearest to the target."""
    above = int(np.searchsorted(sums, target))
    if above == sums.size:
        return above
    below = float(sums[above - 1]) if above else 0.0
    return above + int(float(sums[above]) - target < target - below)
