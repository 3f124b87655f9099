"""Importance by weight and activation: |W_ij| * ||X_j||_2 (Sun et al. 2023, arXiv 2306.11695, equation 1).

X_j is what a linear layer multiplies column j of its matrix with, over all tokens of the sample; its norm is taken
without dividing by their number, which changes no ranking. Vectors and the embedding multiply no input in this
sense and have no such score. With `power` 2 it is |W_ij| * ||X_j||_2 ^ 2, whose L2 norm over a column is what SSU
ranks columns by (arXiv 2512.04844), up to a factor that is the same in the whole matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from surgeon.anatomy.slots import Slot
from surgeon.errors import InputError
from surgeon.scores.products import Products
from surgeon.scores.sample import Scores


class InputNorms(Products):
    """Sums the squares of the inputs of each matrix."""

    def __init__(self, slots: Mapping[str, Slot], power: int = 1) -> None:
        super().__init__(slots)
        self._power = power

    def note(self, address: int, axis: int, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Add the squares of the inputs, in float64."""
        squares = inputs.double().square().sum(0)
        self.noted[address, axis, "squares"] = self.noted.get((address, axis, "squares"), 0) + squares

    def scores(self) -> Scores:
        """Return the weights' sizes times the norms of their inputs.

        An expert that the router never chose has scores of zero.

        Raises:
            InputError: a tensor is not the matrix of any linear layer, or the activations are not finite.
        """
        result = {}
        for name, slot in self.slots.items():
            norms = self._norms(name, slot.parameter).float().expand_as(slot.parameter)
            result[name] = (slot.values().float().abs() * slot.of(norms)).cpu()
        return result

    def _norms(self, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the norms of a parameter's inputs, shaped so that they expand to the parameter's shape."""
        found = self.of(parameter, "squares")
        if found is None:
            raise InputError(
                f"tensor '{name}' has no Wanda score: the model multiplies no inputs with it as the matrix of a linear "
                "layer; exclude it, or use grad_param"
            )
        axis, squares = found
        if not bool(torch.isfinite(squares).all()):
            raise InputError(f"the inputs of tensor '{name}' are not finite: the model is broken")
        norms = (squares if self._power == 2 else squares.sqrt()).unsqueeze(2 - axis)
        return norms if parameter.dim() == 3 else norms[0]
