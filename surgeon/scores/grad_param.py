"""Importance by first-order Taylor expansion: | theta_j * dL/dtheta_j | (Zhang et al. 2024, equation 3).

L is the mean negative log-likelihood over all predicted tokens of a language's sample. Two reductions over batches:

    signed      | theta_j * sum_b g_bj |     independent of how the sample is cut into batches
    absolute    sum_b | theta_j * g_bj |     the batch size is part of the result
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surgeon.scores.base import BackwardScore

if TYPE_CHECKING:
    import torch


class GradParam(BackwardScore):
    """|weight x gradient|: how much the loss would change without the entry, to first order."""

    kind: Literal["grad_param"] = Field(description="the score: the weight times its gradient")
    reduction: Literal["signed", "absolute"] = Field(
        "signed", description="signed: absolute value of the sum over batches; absolute: sum of the absolute values"
    )

    @property
    def variety(self) -> str:
        """The kind with its reduction."""
        return f"{self.kind} ({self.reduction})"

    @property
    def sums_gradients(self) -> bool:
        """True for `signed`, which is linear in the batches."""
        return self.reduction == "signed"

    def contribution(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return | theta * g | of one batch."""
        return gradient.mul_(weight).abs_()

    def score(self, weight: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Return | theta * sum of g |; of `absolute` the sum itself."""
        return total.mul_(weight).abs_() if self.sums_gradients else total
