"""A sweep forward that watches every product of inputs with a matrix: what Wanda and activation scores are made from.

Which input meets which weight is not guessed from module classes: while the model runs, every matrix product whose
second factor is a parameter's own memory, or its transpose, is noted. That covers torch's Linear, transformers'
Conv1D, fused projections, routers, and experts held in one fused parameter, each of which is a matrix of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from surgeon import ranks
from surgeon.anatomy.slots import Slot
from surgeon.model.batches import head_chunks
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


class Products(TorchFunctionMode):
    """While active, lets `note` see the products of inputs with each matrix: a parameter, or one expert's part of it.

    What is noted stands in `noted`, by a matrix's address, the axis of it that meets the inputs, and a word; a rank
    goes on with what the rank before it has noted of the same language.
    """

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        super().__init__()
        self.slots = slots
        self._matrices = {matrix.data_ptr(): matrix for p in parameters_of(slots) for matrix in matrices_of(p)}
        self.noted: dict[tuple[int, int, str], torch.Tensor] = {}

    @abstractmethod
    def note(self, address: int, axis: int, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Take in one product: inputs (tokens, inputs) and outputs (tokens, outputs)."""

    @abstractmethod
    def scores(self) -> Scores:
        """Return the scores of the slots."""

    def go_on(self, link: Link) -> None:
        """Begin with what the batches of the language that another rank has before gave."""
        if link.before is None or not self._matrices:
            return
        found = ranks.receive_value(link.before, ranks.CHAIN)
        addresses = list(self._matrices)
        for (i, axis, word), value in found.items():
            self.noted[addresses[i], axis, word] = value.to(self._matrices[addresses[i]].device)

    def handed_on(self, link: Link) -> bool:
        """Hand what was noted to the rank that has the language's next batches, if there is one."""
        if link.after is None:
            return False
        numbers = {address: i for i, address in enumerate(self._matrices)}  # addresses are each process's own
        if self._matrices:
            found = {(numbers[address], axis, word): value.cpu() for (address, axis, word), value in self.noted.items()}
            ranks.send_value(found, link.after, ranks.CHAIN)
        return True

    def of(self, parameter: torch.nn.Parameter, word: str) -> tuple[int, torch.Tensor] | None:
        """Return what was noted of a parameter's matrices, zeros for those that met no input, stacked; and the axis."""
        matrices = matrices_of(parameter)
        for axis in (0, 1):
            found = [self.noted.get((matrix.data_ptr(), axis, word)) for matrix in matrices]
            some = next((value for value in found if value is not None), None)
            if some is not None:
                nothing = torch.zeros_like(some)
                return axis, torch.stack([nothing if value is None else value for value in found])
        return None

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
        matrix = self._matrices.get(weight.data_ptr())
        if matrix is None:
            return
        if (weight.shape, weight.stride()) != (matrix.shape, matrix.stride()):
            if (weight.shape, weight.stride()) != (matrix.T.shape, matrix.T.stride()):
                return  # a part of the matrix, which is then missed and refused by name
            axis = 1 - axis
        flat = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (inputs, outputs))
        self.note(weight.data_ptr(), axis, *flat)


def sweep(
    stack: Stack,
    sample: Sample,
    slots: Mapping[str, Slot],
    hidden: States,
    advance: Advance,
    watch: Callable[[Mapping[str, Slot]], Products],
) -> Iterator[tuple[int, str, Scores]]:
    """Yield (layer, language, scores), the first layer first, all languages of a layer in a row; -1 is what is outside.

    `watch` makes what watches the products with some slots' matrices in one language. The hidden states of one layer
    are kept in `hidden`. `advance` is called with units of work, see `work`.

    Raises:
        InputError: what `scores` of the watching object says.
    """
    wanted = units(stack, slots)
    arguments = enter_sample(stack, sample, hidden)
    for number in range(len(stack.layers)):
        with stack.loaded.weights.resident(stack.unit(number), stack.unit(number + 1)):
            for language, batches, link in sample.turns():
                with _watching(stack.loaded.model, watch(wanted.get(number, {}))) as products:
                    products.go_on(link)
                    for batch, _ in batches:
                        before = hidden.get(number, batch, stack.loaded.device)
                        hidden.put(number + 1, batch, stack.layer(number, before, arguments[batch][number]))
                        advance(1)
                if number in wanted and not products.handed_on(link):
                    yield number, language, products.scores()
        hidden.drop(number)
    if -1 in wanted:
        for language, scores in _outside(stack, sample, wanted[-1], hidden, advance, watch):
            yield -1, language, scores


def work(stack: Stack, sample: Sample, slots: Mapping[str, Slot]) -> int:
    """Return how many units `sweep` calls `advance` with."""
    return len(sample.all()) * (len(stack.layers) + (-1 in units(stack, slots)))


def matrices_of(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """Return a parameter's matrices: itself, or each expert's; nothing if it has none."""
    detached = parameter.detach()
    return list(detached) if detached.dim() == 3 else [detached] if detached.dim() == 2 else []


def _outside(
    stack: Stack,
    sample: Sample,
    slots: Mapping[str, Slot],
    hidden: States,
    advance: Advance,
    watch: Callable[[Mapping[str, Slot]], Products],
) -> Iterator[tuple[str, Scores]]:
    with stack.loaded.weights.resident(stack.outer("out")):
        for language, batches, link in sample.turns():
            with _watching(stack.loaded.model, watch(slots)) as products:
                products.go_on(link)
                for batch, ids in batches:
                    if not stack.layers:
                        stack.whole(ids)
                    else:
                        last = hidden.get(len(stack.layers), batch, stack.loaded.device)
                        for rows, positions in head_chunks(stack, ids):
                            stack.head(last[rows, positions])
                    advance(1)
            if not products.handed_on(link):
                yield language, products.scores()


@contextmanager
def _watching(model: Any, products: Products) -> Iterator[Products]:
    with torch.no_grad(), _plain_experts(model, parameters_of(products.slots)), products:
        yield products


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
