"""The pass forward of a score: every product of inputs with a matrix is watched, and noted as the score says.

Which input meets which weight is not guessed from module classes: while the model runs, every matrix product whose
second factor is a parameter's own memory, or its transpose, is noted. That covers torch's Linear, transformers'
Conv1D, fused projections, routers, and experts held in one fused parameter, each of which is a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.anatomy.slots import Slot, parameters_of
from surgeon.model.hidden_states import States, enter_some
from surgeon.model.layer_stack import head_chunks
from surgeon.scores.base import ForwardScore
from surgeon.scores.passes import Advance, Pass, Piece, Scores, totals
from surgeon.scores.statistics import Collected, RunningStatistics, merged

# Functions that multiply inputs with a matrix: the positions of both, and the matrix's axis that meets the inputs.
_PRODUCTS: dict[Any, tuple[int, int, int]] = {
    torch.nn.functional.linear: (0, 1, 1),
    torch.addmm: (1, 2, 0),
    torch.matmul: (0, 1, 0),
    torch.Tensor.matmul: (0, 1, 0),
}


class Watching(TorchFunctionMode):
    """While active, has `score` take statistics of the products of inputs with each matrix of a layer."""

    def __init__(self, score: ForwardScore, running: RunningStatistics) -> None:
        super().__init__()
        self._score, self.running = score, running
        self._numbers = {matrix.data_ptr(): number for number, matrix in enumerate(running.matrices)}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            inputs, weight, axis = _PRODUCTS[func]
            if len(args) > weight and args[weight].dim() == 2:
                self._meet(args[inputs], args[weight], axis, result)
        return result

    def _meet(self, inputs: torch.Tensor, weight: torch.Tensor, axis: int, outputs: torch.Tensor) -> None:
        number = self._numbers.get(weight.data_ptr())
        if number is None:
            return
        matrix = self.running.matrices[number]
        if (weight.shape, weight.stride()) != (matrix.shape, matrix.stride()):
            if (weight.shape, weight.stride()) != (matrix.T.shape, matrix.T.stride()):
                return  # a part of the matrix, which is then missed and refused by name
            axis = 1 - axis
        flat = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (inputs, outputs))
        for statistic in self._score.statistics(*flat):
            self.running.take(number, axis, statistic)


def run(of: Pass, hidden: States, advance: Advance) -> Iterator[tuple[int, str, Scores]]:
    """Yield (layer, language, scores), the first layer first, all languages of a layer in a row; -1 is what is outside.

    The hidden states of one layer are kept in `hidden`. `advance` is called with units of work, see `work`.

    Raises:
        InputError: see `ForwardScore.scores`.
    """
    stack, wanted = of.stack, of.by_layer
    arguments = enter_some(stack, ((number, ids) for _, number, ids in of.own_batches), hidden)

    def through(layer: int, batch: int, ids: torch.Tensor) -> None:
        before = hidden.get(layer, batch)
        hidden.put(layer + 1, batch, stack.layer(layer, before, arguments[batch][layer]))
        advance(1)

    def head(batch: int, ids: torch.Tensor) -> None:
        last = hidden.get(len(stack.layers), batch)
        for rows, positions in head_chunks(stack, ids):
            stack.head(last[rows, positions])
        advance(1)

    for number in range(len(stack.layers)):
        with stack.loaded.weights.resident(stack.inner(number), stack.inner(number + 1)):
            for language, scores in _watched(of, wanted.get(number, {}), partial(through, number)):
                yield number, language, scores
        hidden.drop(number)
    if -1 in wanted:
        with stack.loaded.weights.resident(stack.outer("out")):
            for language, scores in _watched(of, wanted[-1], head):
                yield -1, language, scores


def work(of: Pass) -> int:
    """Return how many units `run` calls `advance` with."""
    return len(of.own_batches) * (len(of.stack.layers) + (-1 in of.by_layer))


def _watched(
    of: Pass, slots: Mapping[str, Slot], through: Callable[[int, torch.Tensor], None]
) -> Iterator[tuple[str, Scores]]:
    """Have every batch pass `through`, by its number and token ids; yield each language's scores of slots, if any."""
    score, checkpoint = cast(ForwardScore, of.score), of.stack.loaded.checkpoint
    places = anatomy_of(checkpoint).places

    def statistics() -> RunningStatistics:
        return RunningStatistics(score.kind, slots, {name: places[name] for name in slots}, checkpoint.config)

    def of_piece(piece: Piece) -> Collected:
        running = statistics()
        watching = Watching(score, running)
        with torch.no_grad(), _plain_experts(of.stack.loaded.model, parameters_of(slots)), watching:
            for batch, ids in piece.batches:
                through(batch, ids)
        return running.collected

    for language, total in totals(of.team, of.sample.pieces, of_piece, merged):
        if slots:
            running = statistics()
            running.collected = total
            yield language, score.scores(running)


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
