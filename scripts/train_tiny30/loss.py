"""Cross-entropy of a language model's head, computed in slices so that the logits never leave the cache.

On a small CPU the full matrix of logits (tokens x vocabulary) costs more in memory traffic than in
arithmetic. Here the head, the softmax and both gradients are computed slice by slice in the forward pass; the
backward pass only scales them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

SLICE = 512


class SlicedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T` against `targets`, with gradients for `hidden` and `weight`."""

    @staticmethod
    def forward(context: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, and keep the gradients for the backward pass."""
        total = hidden.new_zeros(())
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], SLICE):
            piece = hidden[start : start + SLICE]
            wanted = targets[start : start + SLICE]
            log_probabilities = functional.log_softmax(piece @ weight.T, dim=-1)
            total -= log_probabilities.gather(1, wanted[:, None]).sum()
            gradient = log_probabilities.exp_()
            gradient[torch.arange(len(wanted)), wanted] -= 1.0
            torch.mm(gradient, weight, out=hidden_gradient[start : start + SLICE])
            weight_gradient.addmm_(gradient.T, piece)
        count = hidden.shape[0]
        context.save_for_backward(hidden_gradient.div_(count), weight_gradient.div_(count))
        return total / count

    @staticmethod
    def backward(context: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Scale the gradients found in the forward pass by the gradient of the loss."""
        hidden_gradient, weight_gradient = context.saved_tensors
        return hidden_gradient * outputs[0], weight_gradient * outputs[0], None


def sliced_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of hidden states (..., width) under a head `weight` (vocabulary, width)."""
    loss: torch.Tensor = SlicedCrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten())
    return loss
