"""Muon: momentum whose update is made orthogonal, for the matrices of the decoder layers.

Method: Keller Jordan and others, 2024, "Muon: an optimizer for hidden layers in neural networks". Written for
float32 on a CPU: matrices of one shape are stacked, so that the Newton-Schulz iteration runs as a few batched
products.
"""

from __future__ import annotations

from collections import defaultdict

import torch

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(stack: torch.Tensor) -> torch.Tensor:
    """Bring every singular value of each matrix in a stack (count, rows, columns) close to one."""
    first, second, third = COEFFICIENTS
    transposed = stack.shape[1] > stack.shape[2]
    result = stack.mT if transposed else stack
    result = result / (result.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = result @ result.mT
        result = first * result + (second * gram + third * gram @ gram) @ result
    return result.mT if transposed else result


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled so that learning rates are comparable to those of Adam."""

    def __init__(
        self,
        matrices: list[torch.nn.Parameter],
        learning_rate: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(matrices, {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix by its orthogonalised momentum."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                updates = orthogonalised(
                    torch.stack([self._momentum(matrix, group["momentum"]) for matrix in matrices])
                )
                scale = 0.2 * max(shape) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, matrix: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """Add the gradient to the running momentum and return the Nesterov look-ahead."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        running: torch.Tensor = state["momentum"]
        running.lerp_(matrix.grad, 1.0 - momentum)
        return torch.lerp(matrix.grad, running, momentum)
