"""Importance by weight and activation: |W_ij| * ||X_j||_2 (Sun et al. 2023, arXiv 2306.11695, equation 1).

X_j is what a linear layer multiplies column j of its matrix with, over all tokens of the sample; its norm is taken
without dividing by their number, which changes no ranking. Vectors and the embedding multiply no input in this
sense and have no such score.

Which input meets which weight is not guessed from module classes: while the model runs, every matrix product whose
second factor is a parameter's own memory, or its transpose, is noted. That covers torch's Linear, transformers'
Conv1D, fused projections, routers, and experts held in one fused parameter, each of which has norms of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from surgeon.errors import InputError
from surgeon.model.slots import Slot

# Functions that multiply inputs with a matrix: the positions of both, and the matrix's axis that meets the inputs.
_PRODUCTS: dict[Any, tuple[int, int, int]] = {
    torch.nn.functional.linear: (0, 1, 1),
    torch.addmm: (1, 2, 0),
    torch.matmul: (0, 1, 0),
    torch.Tensor.matmul: (0, 1, 0),
}


def accumulate(
    model: Any,
    slots: Mapping[str, Slot],
    scores: Mapping[str, torch.Tensor],
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Write the score of every matrix on one sample into `scores` (float32, the on-disk shapes).

    `sequences` are token ids of equal length; `advance` is called with the number of sequences done. An expert
    that the router never chose has scores of zero.

    Raises:
        InputError: a tensor is not the matrix of any linear layer, or the activations are not finite.
    """
    parameters = {id(slot.parameter): slot.parameter for slot in slots.values()}
    device = next(model.parameters()).device
    noted = _InputSquares(parameters.values())
    with torch.inference_mode(), _plain_experts(model, parameters.values()), noted:
        for start in range(0, len(sequences), batch_size):
            batch = torch.tensor(sequences[start : start + batch_size], device=device)
            model(input_ids=batch, use_cache=False)
            advance(len(batch))
    for name, slot in slots.items():
        norms = noted.norms(name, slot.parameter)
        scores[name].copy_(slot.values().float().abs() * slot.of(norms.float().expand_as(slot.parameter)))


@contextmanager
def _plain_experts(model: Any, parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Have fused experts multiplied one by one meanwhile, as grouped products hide which tokens meet which."""
    if not any(parameter.dim() == 3 for parameter in parameters):
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


class _InputSquares(TorchFunctionMode):
    """While active, sums the squares of the inputs of each matrix: a parameter, or one expert's part of it."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().__init__()
        self._matrices = {matrix.data_ptr(): matrix for p in parameters for matrix in _matrices(p)}
        self._squares: dict[tuple[int, int], torch.Tensor] = {}  # by address and by the axis that meets the inputs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            inputs, weight, axis = _PRODUCTS[func]
            if len(args) > weight and args[weight].dim() == 2:
                self._note(args[inputs], args[weight], axis)
        return result

    def _note(self, inputs: torch.Tensor, weight: torch.Tensor, axis: int) -> None:
        matrix = self._matrices.get(weight.data_ptr())
        if matrix is None:
            return
        if (weight.shape, weight.stride()) != (matrix.shape, matrix.stride()):
            if (weight.shape, weight.stride()) != (matrix.T.shape, matrix.T.stride()):
                return  # a part of the matrix, which is then missed and refused by name
            axis = 1 - axis
        squares = inputs.reshape(-1, inputs.shape[-1]).double().square().sum(0)
        key = weight.data_ptr(), axis
        self._squares[key] = self._squares.get(key, 0) + squares

    def norms(self, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the norms of a parameter's inputs, shaped so that they expand to the parameter's shape."""
        matrices = _matrices(parameter)
        for axis in (0, 1):
            found = [self._squares.get((matrix.data_ptr(), axis)) for matrix in matrices]
            if any(squares is not None for squares in found):
                nothing = torch.zeros(matrices[0].shape[axis], dtype=torch.float64, device=parameter.device)
                stacked = torch.stack([nothing if squares is None else squares for squares in found])
                if not bool(torch.isfinite(stacked).all()):
                    raise InputError(f"the inputs of tensor '{name}' are not finite: the model is broken")
                norms = stacked.sqrt().unsqueeze(2 - axis)
                return norms if parameter.dim() == 3 else norms[0]
        raise InputError(
            f"tensor '{name}' has no Wanda score: the model multiplies no inputs with it as the matrix of a linear "
            "layer; exclude it, or use grad_param"
        )


def _matrices(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """Return a parameter's matrices: itself, or each expert's; nothing if it has none."""
    detached = parameter.detach()
    return list(detached) if detached.dim() == 3 else [detached] if detached.dim() == 2 else []
