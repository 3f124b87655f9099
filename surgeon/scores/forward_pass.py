"""The pass forward of a score: every product of inputs with a matrix is watched, and noted as the score says.

Which input meets which weight is not guessed from module classes: while the model runs, every matrix product whose
second factor is a parameter's own memory, or its transpose, is noted. That covers torch's Linear, transformers'
Conv1D, fused projections, routers, and experts held in one fused parameter, each of which is a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from surgeon import ranks
from surgeon.anatomy.slots import Slot
from surgeon.model.embedding_and_head import head_chunks
from surgeon.model.hidden_states import States
from surgeon.model.layer_stack import Stack
from surgeon.scores.base import ForwardScore
from surgeon.scores.running_statistics import RunningStatistics
from surgeon.scores.sample import Advance, Link, Sample, Scores, enter_sample, parameters_of, units

# Functions that multiply inputs with a matrix: the positions of both, and the matrix's axis that meets the inputs.
_PRODUCTS: dict[Any, tuple[int, int, int]] = {
    torch.nn.functional.linear: (0, 1, 1),
    torch.addmm: (1, 2, 0),
    torch.matmul: (0, 1, 0),
    torch.Tensor.matmul: (0, 1, 0),
}


class Watching(TorchFunctionMode):
    """While active, has `score` note the products of inputs with each matrix of a layer, in one language.

    A rank goes on with what the rank before it has noted of the same language.
    """

    def __init__(self, score: ForwardScore, running: RunningStatistics) -> None:
        super().__init__()
        self._score, self._running = score, running
        self._numbers = {matrix.data_ptr(): number for number, matrix in enumerate(running.matrices)}

    def scores(self) -> Scores:
        """Return the scores of the layer's tensors in this language."""
        return self._score.scores(self._running)

    def go_on(self, link: Link) -> None:
        """Begin with what the batches of the language that another rank has before gave."""
        if link.before is None or not self._running.matrices:
            return
        values, self._running.along = ranks.receive_value(link.before, ranks.CHAIN)
        for key, value in values.items():
            self._running.values[key] = value.to(self._running.matrices[key[0]].device)

    def handed_on(self, link: Link) -> bool:
        """Hand what was noted to the rank that has the language's next batches, if there is one."""
        if link.after is None:
            return False
        if self._running.matrices:
            values = {key: value.cpu() for key, value in self._running.values.items()}
            ranks.send_value((values, self._running.along), link.after, ranks.CHAIN)
        return True

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
        matrix = self._running.matrices[number]
        if (weight.shape, weight.stride()) != (matrix.shape, matrix.stride()):
            if (weight.shape, weight.stride()) != (matrix.T.shape, matrix.T.stride()):
                return  # a part of the matrix, which is then missed and refused by name
            axis = 1 - axis
        flat = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (inputs, outputs))
        for statistic in self._score.statistics(*flat):
            self._running.take(number, axis, statistic)


def run(
    stack: Stack,
    sample: Sample,
    slots: Mapping[str, Slot],
    hidden: States,
    advance: Advance,
    watch: Callable[[Mapping[str, Slot]], Watching],
) -> Iterator[tuple[int, str, Scores]]:
    """Yield (layer, language, scores), the first layer first, all languages of a layer in a row; -1 is what is outside.

    `watch` makes what watches the products with the matrices of some slots in one language. The hidden states of one
    layer are kept in `hidden`. `advance` is called with units of work, see `work`.

    Raises:
        InputError: what `scores` of the watching object says.
    """
    wanted = units(stack, slots)
    arguments = enter_sample(stack, sample, hidden)
    for number in range(len(stack.layers)):
        with stack.loaded.weights.resident(stack.unit(number), stack.unit(number + 1)):
            for language, batches, link in sample.turns():
                mine = wanted.get(number, {})
                with _watching(stack.loaded.model, mine, watch(mine)) as watching:
                    watching.go_on(link)
                    for batch, _ in batches:
                        before = hidden.get(number, batch, stack.loaded.device)
                        hidden.put(number + 1, batch, stack.layer(number, before, arguments[batch][number]))
                        advance(1)
                if number in wanted and not watching.handed_on(link):
                    yield number, language, watching.scores()
        hidden.drop(number)
    if -1 in wanted:
        for language, scores in _outside(stack, sample, wanted[-1], hidden, advance, watch):
            yield -1, language, scores


def work(stack: Stack, sample: Sample, slots: Mapping[str, Slot]) -> int:
    """Return how many units `run` calls `advance` with."""
    return len(sample.all()) * (len(stack.layers) + (-1 in units(stack, slots)))


def _outside(
    stack: Stack,
    sample: Sample,
    slots: Mapping[str, Slot],
    hidden: States,
    advance: Advance,
    watch: Callable[[Mapping[str, Slot]], Watching],
) -> Iterator[tuple[str, Scores]]:
    with stack.loaded.weights.resident(stack.outer("out")):
        for language, batches, link in sample.turns():
            with _watching(stack.loaded.model, slots, watch(slots)) as watching:
                watching.go_on(link)
                for batch, ids in batches:
                    if not stack.layers:
                        stack.whole(ids)
                    else:
                        last = hidden.get(len(stack.layers), batch, stack.loaded.device)
                        for rows, positions in head_chunks(stack, ids):
                            stack.head(last[rows, positions])
                    advance(1)
            if not watching.handed_on(link):
                yield language, watching.scores()


@contextmanager
def _watching(model: Any, slots: Mapping[str, Slot], watching: Watching) -> Iterator[Watching]:
    with torch.no_grad(), _plain_experts(model, parameters_of(slots)), watching:
        yield watching


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
