"""The pass forward and back of a score of gradients (`base.BackwardScore`).

The loss is the mean negative log-likelihood over all predicted tokens of a language's sample.
No optimizer step is taken. All batches of all languages go through the layers together, once forward, keeping the
hidden states between layers, and once backward; a layer's weights are read once each way, and when a layer is done
its scores are complete in every language. Sums are float32 whatever the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surgeon import ranks
from surgeon.anatomy.slots import Slot
from surgeon.errors import InputError, present
from surgeon.model.embedding_and_head import head_chunks
from surgeon.model.hidden_states import States
from surgeon.model.layer_stack import Arguments, Stack
from surgeon.scores.base import BackwardScore
from surgeon.scores.sample import UNCOUNTED, Advance, Link, Sample, Scores, enter_sample, parameters_of, units

BACKWARD = 3  # what a layer costs backward, in forward passes: one again, and two for both gradients


@dataclass(frozen=True)
class Kept:
    """The hidden states before each layer (row 0 is the embedding's output), and gradients by the same rows."""

    hidden: States
    gradients: States


@dataclass(frozen=True)
class Progressed:
    """How far an earlier pass over the same states came: layers forward, and, once it turned, layers left backward."""

    forward: int = 0
    left: int | None = None


@dataclass(frozen=True)
class _Pass:
    """What the parts of a pass share; `arguments` are those of the layers, batch by batch."""

    stack: Stack
    sample: Sample
    kept: Kept
    advance: Advance
    arguments: Sequence[tuple[Arguments, ...]]


def run(
    stack: Stack,
    sample: Sample,
    slots: Mapping[str, Slot],
    score: BackwardScore,
    kept: Kept,
    advance: Advance,
    start: Progressed = Progressed(),
    note: Callable[[Progressed], None] = lambda progressed: None,
) -> Iterator[tuple[int, str, Scores]]:
    """Yield (layer, language, scores), the last layer first, all languages of a layer in a row; -1 is what is outside.

    `slots` are the tensors to score. `advance` is called with units of work, see `work`. A pass that was interrupted
    goes on over the same `kept` from `start`; `note` is called with what may become such a start.

    Raises:
        InputError: the loss is not finite, so that no gradient means anything.
    """
    wanted = units(stack, slots)
    outside = wanted.pop(-1, {})
    if not stack.layers:
        yield from _whole(stack, sample, outside, score, advance)
        return
    run = _Pass(stack, sample, kept, advance, enter_sample(stack, sample, kept.hidden))
    if start.left is None:
        _forward(run, start.forward, note)
        _heads(run)
        note(Progressed(len(stack.layers), len(stack.layers)))
    lowest = -1 if outside else min(wanted, default=0)
    for layer in range(len(stack.layers) if start.left is None else start.left, max(lowest, 0), -1):
        for language, scores in _backward(run, layer - 1, wanted.get(layer - 1, {}), score, layer - 1 > lowest):
            yield layer - 1, language, scores
        note(Progressed(len(stack.layers), layer - 1))
        if not (outside and layer == len(stack.layers)):  # whose states the head is scored with
            kept.hidden.drop(layer)
        kept.gradients.drop(layer)
    if outside:
        for language, scores in _outside(run, outside, score):
            yield -1, language, scores


def work(stack: Stack, sample: Sample, slots: Mapping[str, Slot]) -> int:
    """Return how many units `run` calls `advance` with: batches times layers, a layer backward counting more."""
    batches = len(sample.all())
    if not stack.layers:
        return batches
    wanted = units(stack, slots)
    below = len(stack.layers) - (0 if -1 in wanted else min(wanted, default=0))
    return batches * (len(stack.layers) + BACKWARD + BACKWARD * below + (BACKWARD if -1 in wanted else 0))


def _forward(run: _Pass, done: int, note: Callable[[Progressed], None]) -> None:
    stack, hidden = run.stack, run.kept.hidden
    run.advance(done * len(run.arguments))
    for number in range(done, len(stack.layers)):
        with stack.loaded.weights.resident(stack.unit(number), stack.unit(number + 1)), torch.no_grad():
            for batch, of_layers in enumerate(run.arguments):
                before = hidden.get(number, batch, stack.loaded.device)
                hidden.put(number + 1, batch, stack.layer(number, before, of_layers[number]))
                run.advance(1)
        note(Progressed(number + 1))


def _heads(run: _Pass) -> None:
    """Put the gradient of the loss by the last hidden state of every batch where the layers will look for it."""
    stack, last = run.stack, len(run.stack.layers)
    with stack.loaded.weights.resident(stack.outer("out")):
        for language, batches in run.sample.numbered():
            for batch, ids in batches:
                hidden = run.kept.hidden.get(last, batch, stack.loaded.device).requires_grad_()
                _backpropagate_head(stack, hidden, ids, run.sample, language)
                run.kept.gradients.put(last, batch, present(hidden.grad))
                run.advance(BACKWARD)


def _backpropagate_head(stack: Stack, hidden: torch.Tensor, ids: torch.Tensor, sample: Sample, language: str) -> None:
    """Add the gradient of one batch's loss to `hidden.grad`, chunk by chunk of its tokens."""
    labels = sample.labels(ids).to(hidden.device)
    for rows, positions in head_chunks(stack, ids):
        counted = labels[rows, positions]
        if bool((counted != UNCOUNTED).any()):
            _backpropagate(stack.head(hidden[rows, positions]), counted, sample.predicted[language], language)


def _backpropagate(logits: torch.Tensor, labels: torch.Tensor, predicted: int, language: str) -> None:
    counted = labels.flatten() != UNCOUNTED
    kept, targets = logits.flatten(0, 1)[counted].float(), labels.flatten()[counted]
    loss = torch.nn.functional.cross_entropy(kept, targets, reduction="sum")
    if not torch.isfinite(loss):
        raise InputError(
            f"the loss on the sample of '{language}' is {loss.item()}: the model is broken before any surgery"
        )
    (loss / predicted).backward()  # type: ignore[no-untyped-call]


def _backward(
    run: _Pass, number: int, slots: Mapping[str, Slot], score: BackwardScore, further: bool
) -> Iterator[tuple[str, Scores]]:
    """Take every batch's gradient down through one layer, `further` if something below wants it; yield its scores."""
    stack, kept, device = run.stack, run.kept, run.stack.loaded.device
    ahead = stack.unit(number - 1) if device != "cpu" else []  # on a CPU a second layer would cost more than it gains
    with stack.loaded.weights.resident(stack.unit(number), ahead), _Sums(slots, score) as sums:
        for language, batches, link in run.sample.turns():
            sums.go_on(link)
            for batch, _ in batches:
                hidden = kept.hidden.get(number, batch, device).requires_grad_(further)
                output = stack.layer(number, hidden, run.arguments[batch][number])
                output.backward(kept.gradients.get(number + 1, batch, device))  # type: ignore[no-untyped-call]
                if further:
                    kept.gradients.put(number, batch, present(hidden.grad))
                sums.take()
                run.advance(BACKWARD)
            if slots and not sums.handed_on(link):
                yield language, sums.scores()


def _outside(run: _Pass, slots: Mapping[str, Slot], score: BackwardScore) -> Iterator[tuple[str, Scores]]:
    """Score what is outside the layers: each batch's head first, then, with the layers' gradient, its embedding."""
    stack, kept = run.stack, run.kept
    with stack.loaded.weights.resident(stack.outer()), _Sums(slots, score) as sums:
        for language, batches, link in run.sample.turns():
            sums.go_on(link)
            for batch, ids in batches:
                last = kept.hidden.get(len(stack.layers), batch, stack.loaded.device)
                _backpropagate_head(stack, last, ids, run.sample, language)
                entered = stack.enter(ids).hidden
                if entered is not None and entered.requires_grad:
                    entered.backward(kept.gradients.get(0, batch, stack.loaded.device))  # type: ignore[no-untyped-call]
                sums.take()
                run.advance(BACKWARD)
            if not sums.handed_on(link):
                yield language, sums.scores()


def _whole(
    stack: Stack, sample: Sample, slots: Mapping[str, Slot], score: BackwardScore, advance: Advance
) -> Iterator[tuple[int, str, Scores]]:
    """Score a model that is no plain stack, held as a whole."""
    with stack.loaded.weights.resident(stack.outer()), _Sums(slots, score) as sums:
        for language, batches, link in sample.turns():
            sums.go_on(link)
            for _, ids in batches:
                labels = sample.labels(ids).to(stack.loaded.device)
                _backpropagate(stack.whole(ids), labels, sample.predicted[language], language)
                sums.take()
                advance(1)
            if not sums.handed_on(link):
                yield -1, language, sums.scores()


class _Sums:
    """Sums of one language's gradients, batch by batch, of the parameters that slots are parts of.

    Sums of float32 gradients themselves are what autograd adds up; all others are taken over in float32. Where the
    batches of a language are on several ranks, a sum begins with that of the rank before and is handed to the next, so
    that it is added up in the order of the batches, to the same bits, on however many.
    """

    def __init__(self, slots: Mapping[str, Slot], score: BackwardScore) -> None:
        self._slots, self._score, self._plain = slots, score, score.sums_gradients
        self._parameters = parameters_of(slots)
        self._sums: dict[int, torch.Tensor] = {}
        self._leaving: tuple[Sequence[Any], int] | None = None

    def __enter__(self) -> _Sums:
        for parameter in self._parameters:
            parameter.requires_grad_()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for parameter in self._parameters:
            parameter.grad = None
            parameter.requires_grad_(False)
        if self._leaving is not None and kind is None:
            ranks.finish(*self._leaving, ranks.CHAIN)

    def go_on(self, link: Link) -> None:
        """Begin a language: with nothing, or with what the batches before, on another rank, gave."""
        if link.before is None or not self._parameters:
            return
        sums = [torch.empty(p.shape, dtype=torch.float32, device=p.device) for p in self._parameters]
        ranks.receive(sums, link.before, ranks.CHAIN)
        for parameter, total in zip(self._parameters, sums, strict=True):
            if self._plain and parameter.dtype == torch.float32:
                parameter.grad = total
            else:
                self._sums[id(parameter)] = total

    def handed_on(self, link: Link) -> bool:
        """Hand the language's sums to the rank that has its next batches, if there is one."""
        if link.after is None:
            return False
        self._leaving = ranks.begin_to_send(self._totals(), link.after, ranks.CHAIN), link.after
        return True

    def take(self) -> None:
        """Take over what one batch has left in the gradients."""
        for parameter in self._parameters:
            if parameter.grad is None or (self._plain and parameter.grad.dtype == torch.float32):
                continue
            gradient = parameter.grad.float()
            if not self._plain:
                gradient = self._score.contribution(parameter.detach().float(), gradient)
            known = self._sums.get(id(parameter))
            self._sums[id(parameter)] = gradient if known is None else known.add_(gradient)
            parameter.grad = None

    def scores(self) -> Scores:
        """Return the language's scores on the CPU, and begin the next one's sums."""
        done = {}
        for parameter, total in zip(self._parameters, self._totals(), strict=True):
            done[id(parameter)] = self._score.score(parameter.detach().float(), total)
        return {name: slot.of(lambda parameter: done[id(parameter)]).cpu() for name, slot in self._slots.items()}

    def _totals(self) -> list[torch.Tensor]:
        """Return the sums of all parameters, and begin the next ones."""
        totals = []
        for parameter in self._parameters:
            total = self._sums.pop(id(parameter), parameter.grad)
            parameter.grad = None
            # no token came by, as with experts that no router chose
            totals.append(torch.zeros(parameter.shape, device=parameter.device) if total is None else total)
        return totals
