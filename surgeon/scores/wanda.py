"""Importance by weight and activation: |W_ij| * ||X_j||_2 (Sun et al. 2023, arXiv 2306.11695, equation 1).

X_j is what a linear layer multiplies column j of its matrix with, over all tokens of the sample; its norm is taken
without dividing by their number, which changes no ranking. Vectors and the embedding multiply no input in this
sense and have no such score.

Which input meets which weight is not guessed from module classes: while the model runs, every matrix product whose
second factor is a parameter's own memory, or its transpose, is noted. That covers torch's Linear, transformers'
Conv1D, fused projections, routers, and experts held in one fused parameter, each of which has norms of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from surgeon import ranks
from surgeon.errors import InputError
from surgeon.model.batches import head_chunks
from surgeon.model.slots import Slot
from surgeon.model.stack import Stack
from surgeon.model.states import States
from surgeon.scores.sample import Advance, Link, Sample, Scores, enter_sample, parameters_of, units

# Functions that multiply inputs with a matrix: the positions of both, and the matrix's axis that meets the inputs.
_PRODUCTS: dict[Any, tuple[int, int, int]] = {
    torch.nn.functional.linear: (0, 1, 1),
    torch.addmm: (1, 2, 0),
    torch.matmul: (0, 1, 0),
    torch.Tensor.matmul: (0, 1, 0),
}


def sweep(
    stack: Stack, sample: Sample, slots: Mapping[str, Slot], hidden: States, advance: Advance
) -> Iterator[tuple[int, str, Scores]]:
    """Yield (layer, language, scores), the first layer first, all languages of a layer in a row; -1 is what is outside.

    `slots` are the matrices to score; an expert that the router never chose has scores of zero. The hidden states of
    one layer are kept in `hidden`. `advance` is called with units of work, see `work`.

    Raises:
        InputError: a tensor is not the matrix of any linear layer, or the activations are not finite.
    """
    wanted = units(stack, slots)
    arguments = enter_sample(stack, sample, hidden)
    for number in range(len(stack.layers)):
        with stack.loaded.weights.resident(stack.unit(number), stack.unit(number + 1)):
            for language, batches, link in sample.turns():
                with _noting(stack.loaded.model, wanted.get(number, {})) as noted:
                    noted.go_on(link)
                    for batch, _ in batches:
                        before = hidden.get(number, batch, stack.loaded.device)
                        hidden.put(number + 1, batch, stack.layer(number, before, arguments[batch][number]))
                        advance(1)
                if number in wanted and not noted.handed_on(link):
                    yield number, language, _scores(noted, wanted[number])
        hidden.drop(number)
    if -1 in wanted:
        for language, scores in _outside(stack, sample, wanted[-1], hidden, advance):
            yield -1, language, scores


def work(stack: Stack, sample: Sample, slots: Mapping[str, Slot]) -> int:
    """Return how many units `sweep` calls `advance` with."""
    return len(sample.all()) * (len(stack.layers) + (-1 in units(stack, slots)))


def _outside(
    stack: Stack, sample: Sample, slots: Mapping[str, Slot], hidden: States, advance: Advance
) -> Iterator[tuple[str, Scores]]:
    with stack.loaded.weights.resident(stack.outer("out")):
        for language, batches, link in sample.turns():
            with _noting(stack.loaded.model, slots) as noted:
                noted.go_on(link)
                for batch, ids in batches:
                    if not stack.layers:
                        stack.whole(ids)
                    else:
                        last = hidden.get(len(stack.layers), batch, stack.loaded.device)
                        for rows, positions in head_chunks(stack, ids):
                            stack.head(last[rows, positions])
                    advance(1)
            if not noted.handed_on(link):
                yield language, _scores(noted, slots)


@contextmanager
def _noting(model: Any, slots: Mapping[str, Slot]) -> Iterator[_InputSquares]:
    parameters = parameters_of(slots)
    noted = _InputSquares(parameters)
    with torch.no_grad(), _plain_experts(model, parameters), noted:
        yield noted


def _scores(noted: _InputSquares, slots: Mapping[str, Slot]) -> Scores:
    result = {}
    for name, slot in slots.items():
        norms = noted.norms(name, slot.parameter).float().expand_as(slot.parameter)
        result[name] = (slot.values().float().abs() * slot.of(norms)).cpu()
    return result


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

    def go_on(self, link: Link) -> None:
        """Begin with what the batches of the language that another rank has before gave."""
        if link.before is None or not self._matrices:
            return
        found = ranks.receive_value(link.before, ranks.CHAIN)
        for i, (address, matrix) in enumerate(self._matrices.items()):
            self._squares |= {
                (address, axis): found[i, axis].to(matrix.device) for axis in (0, 1) if (i, axis) in found
            }

    def handed_on(self, link: Link) -> bool:
        """Hand the sums to the rank that has the language's next batches, if there is one."""
        if link.after is None:
            return False
        numbers = {address: i for i, address in enumerate(self._matrices)}  # addresses are each process's own
        if self._matrices:
            found = {(numbers[address], axis): squares.cpu() for (address, axis), squares in self._squares.items()}
            ranks.send_value(found, link.after, ranks.CHAIN)
        return True

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
