"""Importance by weight and activation: |W_ij| * ||X_j||_2 (Sun et al. 2023, arXiv 2306.11695, equation 1).

X_j is what a linear layer multiplies column j of its matrix with, over all tokens of the sample; its norm is taken
without dividing by their number, which changes no ranking. Vectors and the embedding multiply no input in this
sense and have no such score. With `power` 2 it is |W_ij| * ||X_j||_2 ^ 2, whose L2 norm over a column is what SSU
ranks columns by (arXiv 2512.04844), up to a factor that is the same in the whole matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surgeon.checkpoint.naming import Place
from surgeon.checkpoint.storage import TensorInfo
from surgeon.scores.base import ForwardScore
from surgeon.scores.statistics import Statistic

if TYPE_CHECKING:
    import torch

    from surgeon.scores.statistics import RunningStatistics


class Wanda(ForwardScore):
    """|weight| x norm of the input it is multiplied with, over the sample; matrices of linear layers only."""

    kind: Literal["wanda"] = Field(description="the score: the weight times the norm of its input")
    power: Literal[1, 2] = Field(1, description="of the norm; 2 with `unit: column, by: l2` is SSU's score")

    def can_score(self, info: TensorInfo, where: Place) -> bool:
        """True for matrices that multiply inputs."""
        return len(info.shape) > 1 and where.matrix and where.role != "embed"

    @property
    def limits(self) -> str:
        """Say which tensors it scores."""
        return "wanda scores the matrices of linear layers only"

    def statistics(self, inputs: torch.Tensor, outputs: torch.Tensor) -> Iterator[Statistic]:
        """Yield the sums of the squares of the inputs."""
        yield Statistic("squares", "inputs", "sum", inputs.double().square().sum(0))

    def scores(self, running: RunningStatistics) -> dict[str, torch.Tensor]:
        """Return the weights' sizes times the norms of their inputs; zeros for an expert that no router chose."""

        def norms(squares: torch.Tensor) -> torch.Tensor:
            return (squares if self.power == 2 else squares.sqrt()).float()

        return {
            name: slot.values().float().abs() * running.expanded(name, "squares", norms)
            for name, slot in running.slots.items()
        }
