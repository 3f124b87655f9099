"""A package of somebody else's: three scores, a region, a scope, an operation and a measurement, a few lines each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import Place
from surgeon.checkpoint.storage import TensorInfo
from surgeon.measure.base import Measurement, Seen
from surgeon.model.results import Quantity
from surgeon.operations import Operation, Target
from surgeon.recipe.fields import Count, Model
from surgeon.region.region import Region
from surgeon.regions.base import Making, Planning, RegionKind, RegionPlan, shapes_of
from surgeon.regions.scopes import Scope
from surgeon.scores.base import BackwardScore, ForwardScore, Reader, WeightScore
from surgeon.scores.statistics import Statistic

if TYPE_CHECKING:
    import torch

    from surgeon.recipe.schema import RegionSpec
    from surgeon.scores.base import Score
    from surgeon.scores.statistics import RunningStatistics


class Fisher(BackwardScore):
    """The diagonal of the empirical Fisher information, over batches: sum of g ^ 2."""

    kind: Literal["fisher"] = Field(description="the score: the sum of the squares of the gradients of batches")

    def contribution(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return g ^ 2 of one batch."""
        return gradient.square_()

    def score(self, weight: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        return total


class Reach(ForwardScore):
    """|weight| times the largest size of the input that it is multiplied with."""

    kind: Literal["reach"] = Field(description="the score: the weight times its largest input")

    def can_score(self, info: TensorInfo, where: Place) -> bool:
        """True for matrices."""
        return len(info.shape) > 1

    def statistics(self, inputs: torch.Tensor, outputs: torch.Tensor) -> Iterator[Statistic]:
        """Yield the largest sizes of the inputs."""
        yield Statistic("largest", "inputs", "maximum", inputs.abs().amax(0).double())

    def scores(self, running: RunningStatistics) -> dict[str, torch.Tensor]:
        """Return the products."""
        return {
            name: (slot.values().abs() * running.expanded(name, "largest")).float().cpu()
            for name, slot in running.slots.items()
        }


class Spread(WeightScore):
    """How far a weight lies from the mean of its tensor."""

    kind: Literal["spread"] = Field(description="the score: the distance from the tensor's mean")

    def described(self) -> str:
        """Say what it is made from."""
        return "spread, from the weights alone"

    def reader(self, checkpoint: Checkpoint) -> Reader:
        """Return the distances in a tensor."""

        def distances(name: str) -> NDArray[np.float32]:
            values = checkpoint.array(name).astype(np.float64)
            return np.abs(values - values.mean()).astype(np.float32)

        return distances


class First(Model, RegionKind):
    """The first entries of every tensor."""

    count: Count = Field(description="how many of each tensor")

    key: ClassVar[str] = "first"
    description: ClassVar[str] = "the first entries of every tensor"

    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Take all tensors of the model."""
        tensors = tuple(planning.checkpoint.tensors.values())
        most = sum(min(self.count, info.numel) for info in tensors)
        return RegionPlan(name, spec, tensors, planning.places(tensors), most, True)

    def make(self, making: Making, plan: RegionPlan) -> Region:
        """Return the region."""
        first = {info.name: np.arange(min(self.count, info.numel)) for info in plan.tensors}
        return Region.from_indices(first, shapes_of(plan.tensors))

    def selects(self) -> str:
        """Return how many."""
        return f"the first {self.count}"

    def described(self, score: Score | None, named: Callable[[str], str]) -> list[str]:
        """Return how many."""
        return [f"the first {self.count} entries of every tensor"]


class PerRole(Scope):
    """A share of all tensors of a role together, in all layers."""

    of = "every role"
    spans_layers = True
    spans_tensors = True

    def group(self, alone: str, where: Place) -> str:
        """Return the role."""
        return where.role


class Negate(Operation):
    """Change the sign of the entries of a region."""

    kind: ClassVar[str] = "negate"

    negate: str = Field(description="name of the region")

    def new_values(self, values: NDArray[Any], target: Target) -> NDArray[Any]:
        """Return the values with the other sign."""
        return -values


class Hits(Measurement):
    """How often the text's own token is among the likeliest."""

    among: Count = Field(1, description="how many of the likeliest")

    kind: ClassVar[str] = "hits"
    description: ClassVar[str] = "how often the text's own token is among the likeliest"

    def quantities(self) -> Sequence[Quantity]:
        """Return the one."""
        return [Quantity("hits", f"own token among the {self.among} likeliest", "", "less", "difference", share=True)]

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return 1 where it is, else 0."""
        likeliest = seen.outputs.logits.topk(self.among).indices
        return {"hits": (likeliest == seen.labels[..., None]).any(-1).float()}
