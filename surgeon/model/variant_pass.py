"""The base and its variants through the layers together, each layer's weights read once for all of them.

A variant whose edits have not begun has the unedited model's hidden states, so it is run only from the first layer on
that it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from surgeon.checkpoint.store import own_scratch
from surgeon.errors import present
from surgeon.model import budgets
from surgeon.model.arithmetic import repeatable
from surgeon.model.editing import Variant, edited, prepared
from surgeon.model.hidden_states import States, bytes_needed, enter_some, hidden_layout
from surgeon.model.layer_stack import Arguments, Stack, head_chunks

_OUTSIDE = -1
Take = Callable[[int, int, slice, slice, torch.Tensor], None]  # variant, batch, its rows and positions, their logits
Wanted = Callable[[int, slice, slice], bool]  # batch, its rows and positions


@dataclass(frozen=True)
class _Model:
    """A variant's tensors by the layer that holds them, and the first layer that it changes; -1 is before all of them.

    `row` is where its own hidden states are; row 0 has those of the unedited model.
    """

    variant: Variant
    names: Mapping[int, Sequence[str]]
    first: int
    row: int
    batches: Sequence[int]

    @cached_property
    def uses(self) -> frozenset[int]:
        """The batches that it is run on, to ask for one of them."""
        return frozenset(self.batches)


def run_models(
    stack: Stack,
    variants: Sequence[Variant],
    batches: Sequence[torch.Tensor],
    take: Take,
    *,
    wanted: Wanted = lambda batch, rows, positions: True,
    uses: Callable[[int, int], bool] = lambda variant, batch: True,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Run variants, the base among them, on batches of token ids, shape (rows, length).

    `take` gets the logits chunk by chunk, of those parts of batches that are `wanted`: of each chunk those of all
    variants that use the batch, one after the other in their order, so that what compares them with the first keeps one
    chunk. `advance` is called with the number of batches that went through a layer or the head, see `work`.

    Raises:
        CheckpointError: a variant edits a tensor that is no parameter of the model.
        InputError: see `Surgery.edit`.
    """
    loaded, models = stack.loaded, _models(stack, variants, len(batches), uses)
    names = [_resident(stack, model, "out") for model in models]
    with (
        torch.inference_mode(),
        repeatable(loaded.device),
        _through_layers(stack, models, batches, advance) as states,
        loaded.weights.resident(stack.outer("out")),
    ):
        ready = prepared(loaded, variants, names)
        for batch, ids in enumerate(batches):
            users = [i for i, model in enumerate(models) if batch in model.uses]
            for rows, positions in head_chunks(stack, ids) if users else ():
                if not wanted(batch, rows, positions):
                    continue
                for i in users:
                    row = models[i].row if models[i].first < len(stack.layers) else 0
                    hidden = states.part(row, batch, rows, positions)
                    with edited(loaded, ready[i], names[i]):
                        take(i, batch, rows, positions, stack.head(hidden))
            advance(len(users))


@contextmanager
def outputs_of(
    stack: Stack, batches: Sequence[torch.Tensor], advance: Callable[[int], None] = lambda count: None
) -> Iterator[Callable[[int, slice, slice], torch.Tensor]]:
    """Run an unedited model through its layers, and give its logits of any part of a batch while inside.

    What stays meanwhile is the last layer's hidden states and the head. A model that is no plain stack is run on a
    batch when it is first asked for. `advance` is called as `run_models` does, but for the head.
    """
    if not stack.layers:
        with stack.loaded.weights.resident(stack.outer()):
            yield _WholeOutputs(stack, batches).part
        return
    everything = _Model(Variant(""), {}, len(stack.layers), 1, range(len(batches)))
    with (
        torch.inference_mode(),
        repeatable(stack.loaded.device),
        _through_layers(stack, [everything], batches, advance) as states,
        stack.loaded.weights.resident(stack.outer("out")),
    ):
        yield lambda batch, rows, positions: stack.head(states.part(0, batch, rows, positions))


@dataclass
class _WholeOutputs:
    """A model that is run whole, and the logits of the last batch that was asked for."""

    stack: Stack
    batches: Sequence[torch.Tensor]
    at: int = -1
    logits: torch.Tensor | None = None

    def part(self, batch: int, rows: slice, positions: slice) -> torch.Tensor:
        if self.at != batch:
            with torch.inference_mode():
                self.at, self.logits = batch, self.stack.whole(self.batches[batch])
        return present(self.logits)[rows, positions]


def work(
    stack: Stack,
    variants: Sequence[Variant],
    batches: int,
    uses: Callable[[int, int], bool] = lambda variant, batch: True,
) -> int:
    """Return how many units `run_models` calls `advance` with."""
    models = _models(stack, variants, batches, uses)
    count = sum(len(model.batches) for model in models)  # the heads
    for number in range(len(stack.layers)):
        count += sum(len(model.batches) for model in models if model.first <= number)
        count += len(_unedited(models, number))
    return count


def _models(stack: Stack, variants: Sequence[Variant], batches: int, uses: Callable[[int, int], bool]) -> list[_Model]:
    loaded = stack.loaded
    home = {id(parameter): number for number in range(len(stack.layers)) for parameter in stack.inner(number)}
    before = {id(parameter) for parameter in (stack.outer("in") if stack.layers else ())}
    models = []
    for i, variant in enumerate(variants):
        names: dict[int, list[str]] = {}
        first = len(stack.layers)
        for name in variant.touched(loaded):
            keys = [id(parameter) for parameter in loaded.parameters[name].parameters]
            number = home.get(keys[0], _OUTSIDE)
            names.setdefault(number, []).append(name)
            first = min(first, number if number != _OUTSIDE or before.intersection(keys) else first)
        models.append(_Model(variant, names, first, 1 + i, [b for b in range(batches) if uses(i, b)]))
    return models


def _unedited(models: Sequence[_Model], number: int) -> list[int]:
    """Return the batches whose unedited states somebody needs after a layer."""
    return sorted({batch for model in models if model.first > number for batch in model.batches})


@contextmanager
def _through_layers(
    stack: Stack, models: Sequence[_Model], batches: Sequence[torch.Tensor], advance: Callable[[int], None]
) -> Iterator[States]:
    """Run models through all layers; yields their states after the last one."""
    with _states(stack, batches, 1 + len(models)) as states:
        arguments = _enter(stack, models, batches, states)

        def step(number: int, batch: int, source: int, target: int) -> None:
            how = arguments.get(target, arguments[0])[batch][number]
            states.put(target, batch, stack.layer(number, states.get(source, batch), how))
            advance(1)

        for number in range(len(stack.layers)):
            with stack.loaded.weights.resident(stack.inner(number), stack.inner(number + 1)):
                _run_layer(stack, models, number, partial(step, number))
        yield states


@contextmanager
def _states(stack: Stack, batches: Sequence[torch.Tensor], rows: int) -> Iterator[States]:
    (shapes, dtype), device = hidden_layout(stack, batches), stack.loaded.device
    home = budgets.home_of_hidden(bytes_needed(shapes, rows, dtype), device, stack.size)
    if home is not None:
        yield States(shapes, dtype, None, home=home, device=device)
        return
    with own_scratch() as folder:
        yield States(shapes, dtype, folder, device=device)


def _enter(
    stack: Stack, models: Sequence[_Model], batches: Sequence[torch.Tensor], states: States
) -> dict[int, dict[int, tuple[Arguments, ...]]]:
    """Put the embeddings' outputs into `states`; returns, by row and batch, the arguments of the layers."""
    arguments = {0: enter_some(stack, enumerate(batches), states)}
    for model in models:
        if model.first == _OUTSIDE:
            with (
                stack.loaded.weights.resident(stack.outer("in")),
                edited(stack.loaded, model.variant, _resident(stack, model, "in")),
            ):
                arguments[model.row] = enter_some(stack, enumerate(batches), states, model.row)
    return arguments


def _resident(stack: Stack, model: _Model, part: str) -> list[str]:
    """Return the tensors outside the layers that a model edits and that a part of the outside holds."""
    resident = {id(parameter) for parameter in stack.outer(part)}
    slots = stack.loaded.parameters
    return [
        name for name in model.names.get(_OUTSIDE, ()) if any(id(one) in resident for one in slots[name].parameters)
    ]


def _run_layer(stack: Stack, models: Sequence[_Model], number: int, step: Callable[[int, int, int], None]) -> None:
    """Have every model's batches take a step (batch, from which row, to which) through a layer, which is resident."""
    loaded, running = stack.loaded, [model for model in models if model.first <= number]
    names = [model.names.get(number, ()) for model in running]
    ready = (prepared(loaded, [model.variant], [of])[0] for model, of in zip(running, names, strict=True))
    variant = next(ready, None)
    # Before the unedited states move on: a model begins with them.
    for model, of in zip(running, names, strict=True):
        with edited(loaded, present(variant), of):
            for batch in model.batches:
                step(batch, 0 if model.first == number else model.row, model.row)
            variant = next(ready, None)  # made while a device still computes
    for batch in _unedited(models, number):
        step(batch, 0, 0)
