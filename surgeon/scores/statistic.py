"""What one matrix product adds to a score of a pass forward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Side = Literal["inputs", "outputs"]  # of a matrix


@dataclass(frozen=True)
class Statistic:
    """What one product of inputs (tokens, inputs) with a matrix gives to a running sum or maximum, float64.

    `along` says which side of the matrix the values belong to: one for each input or output, or one for all of them.
    """

    word: str
    along: Side
    how: Literal["sum", "maximum"]
    values: torch.Tensor

    def and_then(self, other: Statistic) -> Statistic:
        """Return the sum, or maximum, of both."""
        import torch

        both = torch.add if self.how == "sum" else torch.maximum
        return replace(self, values=both(self.values, other.values))
