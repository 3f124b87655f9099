"""The pass forward and back of a score of gradients (`base.BackwardScore`).

The loss is the mean negative log-likelihood over all predicted tokens of a language's sample.
No optimizer step is taken. All batches of all languages go through the layers together, once forward, keeping the
hidden states between layers, and once backward; a layer's weights are read once each way, and when a layer is done
its scores are complete in every language. Sums are float32 whatever the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch

from surgeon.anatomy.slots import Slot, parameters_of
from surgeon.errors import CheckpointError, InputError, present
from surgeon.model.hidden_states import enter_some
from surgeon.model.layer_stack import Arguments, Stack, head_chunks, without_gradients
from surgeon.scores.base import BackwardScore
from surgeon.scores.passes import UNCOUNTED, Advance, Kept, Pass, Piece, Progressed, Sample, Scores, totals

BEHIND = 2  # rows of states on disk that stay when a layer is done, as processes that share a pass are not all as far
BACKWARD = 3  # what a layer costs backward, in forward passes: one again, and two for both gradients


@dataclass(frozen=True)
class _Run:
    """What the parts of a pass share; `arguments` are those of the layers, by the numbers of this process's batches."""

    of: Pass
    kept: Kept
    advance: Advance
    arguments: Mapping[int, tuple[Arguments, ...]]

    @property
    def stack(self) -> Stack:
        """The model."""
        return self.of.stack


def run(
    of: Pass,
    kept: Kept,
    advance: Advance,
    start: Progressed,
    note: Callable[[Progressed], None],
) -> Iterator[tuple[int, str, Scores]]:
    """Yield (layer, language, scores), the last layer first, all languages of a layer in a row; -1 is what is outside.

    `advance` is called with units of work, see `work`. A pass that was interrupted goes on over the same `kept` from
    `start`; `note` is called with what may become such a start.

    Raises:
        InputError: the loss is not finite, so that no gradient means anything.
    """
    stack, wanted = of.stack, dict(of.by_layer)
    outside = wanted.pop(-1, {})
    if not stack.layers:
        for language, scores in in_one_go(of, advance):
            yield -1, language, scores
        return
    numbered = ((number, ids) for _, number, ids in of.own_batches)
    run = _Run(of, kept, advance, enter_some(stack, numbered, kept.hidden))
    if start.left is None:
        _forward(run, start.forward, note)
        _heads(run)
        note(Progressed(len(stack.layers), len(stack.layers)))
    lowest = -1 if outside else min(wanted, default=0)
    for layer in range(len(stack.layers) if start.left is None else start.left, max(lowest, 0), -1):
        for language, scores in _backward(run, layer - 1, layer - 1 > lowest):
            yield layer - 1, language, scores
        note(Progressed(len(stack.layers), layer - 1))
        gone = layer + (BEHIND if kept.hidden.on_disk else 0)
        if not (outside and gone == len(stack.layers)):  # whose states the head is scored with
            kept.hidden.drop(gone)
        kept.gradients.drop(gone)
    if outside:
        for language, scores in _outside(run):
            yield -1, language, scores


def work(of: Pass) -> int:
    """Return how many units `run` calls `advance` with: batches times layers, a layer backward counting more."""
    batches, layers, wanted = len(of.own_batches), len(of.stack.layers), of.by_layer
    if not layers:
        return batches
    below = layers - (0 if -1 in wanted else min(wanted, default=0))
    return batches * (layers + BACKWARD + BACKWARD * below + (BACKWARD if -1 in wanted else 0))


def _forward(run: _Run, done: int, note: Callable[[Progressed], None]) -> None:
    stack, hidden = run.stack, run.kept.hidden
    run.advance(done * len(run.arguments))
    for number in range(done, len(stack.layers)):
        with stack.loaded.weights.resident(stack.inner(number), stack.inner(number + 1)), torch.no_grad():
            for batch, of_layers in run.arguments.items():
                before = hidden.get(number, batch)
                hidden.put(number + 1, batch, stack.layer(number, before, of_layers[number]))
                run.advance(1)
        note(Progressed(number + 1))


def _heads(run: _Run) -> None:
    """Put the gradient of the loss by the last hidden state of every batch where the layers will look for it."""
    stack, last = run.stack, len(run.stack.layers)
    with stack.loaded.weights.resident(stack.outer("out")):
        for language, batch, ids in run.of.own_batches:
            hidden = run.kept.hidden.get(last, batch).requires_grad_()
            _backpropagate_head(stack, hidden, ids, run.of.sample, language)
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
    if not logits.requires_grad:  # nothing that is scored takes part in them, as where only an embedding is scored
        return
    counted = labels.flatten() != UNCOUNTED
    kept, targets = logits.flatten(0, 1)[counted].float(), labels.flatten()[counted]
    loss = torch.nn.functional.cross_entropy(kept, targets, reduction="sum")
    if not torch.isfinite(loss):
        raise InputError(
            f"the loss on the sample of '{language}' is {loss.item()}: the model is broken before any surgery"
        )
    (loss / predicted).backward()  # type: ignore[no-untyped-call]


def _backward(run: _Run, number: int, further: bool) -> Iterator[tuple[str, Scores]]:
    """Take every batch's gradient down through one layer, `further` if something below wants it; yield its scores."""
    stack, kept, slots = run.stack, run.kept, run.of.by_layer.get(number, {})
    # On a CPU a second layer would cost more than it gains.
    ahead = stack.inner(number - 1) if stack.loaded.device != "cpu" else []
    with stack.loaded.weights.resident(stack.inner(number), ahead), _Sums(run.of, slots) as sums:

        def step(language: str, batch: int, ids: torch.Tensor) -> None:
            hidden = kept.hidden.get(number, batch).requires_grad_(further)
            output = stack.layer(number, hidden, run.arguments[batch][number])
            output.backward(kept.gradients.get(number + 1, batch))  # type: ignore[no-untyped-call]
            if further:
                kept.gradients.put(number, batch, present(hidden.grad))
            run.advance(BACKWARD)

        yield from sums.over(step)


def _outside(run: _Run) -> Iterator[tuple[str, Scores]]:
    """Score what is outside the layers: each batch's head first, then, with the layers' gradient, its embedding."""
    stack, kept = run.stack, run.kept
    with stack.loaded.weights.resident(stack.outer()), _Sums(run.of, run.of.by_layer[-1]) as sums:

        def step(language: str, batch: int, ids: torch.Tensor) -> None:
            last = kept.hidden.get(len(stack.layers), batch)
            _backpropagate_head(stack, last, ids, run.of.sample, language)
            entered = stack.enter(ids).hidden
            if entered.requires_grad:
                entered.backward(kept.gradients.get(0, batch))  # type: ignore[no-untyped-call]
            run.advance(BACKWARD)

        yield from sums.over(step)


def in_one_go(of: Pass, advance: Advance) -> Iterator[tuple[str, Scores]]:
    """Yield (language, scores) of all slots, from a model that is held whole: batch by batch forward and back.

    Each batch's activations in all layers are kept meanwhile, so that no layer is run forward twice. The gradients are
    those of `run`, since layers, head and batches come in the same order.

    Raises:
        CheckpointError: the model has no gradients.
    """
    loaded = of.stack.loaded
    lacking = without_gradients(loaded.model)
    if lacking is not None:
        raise CheckpointError(f"{loaded.checkpoint.folder}: {lacking}")
    with loaded.weights.resident(list(loaded.model.parameters())), _Sums(of, of.slots) as sums:

        def step(language: str, batch: int, ids: torch.Tensor) -> None:
            _backpropagate_batch(of.stack, ids, of.sample, language)
            advance(1)

        yield from sums.over(step)


def _backpropagate_batch(stack: Stack, ids: torch.Tensor, sample: Sample, language: str) -> None:
    """Add one batch's gradients to those of the parameters; without layers by the model's own forward."""
    if not stack.layers:
        labels = sample.labels(ids).to(stack.loaded.device)
        _backpropagate(stack.whole(ids), labels, sample.predicted[language], language)
        return
    hidden = stack.through(stack.enter(ids))
    last = hidden.detach().requires_grad_()
    _backpropagate_head(stack, last, ids, sample, language)
    if hidden.requires_grad:
        hidden.backward(last.grad)  # type: ignore[no-untyped-call]


class _Sums:
    """Sums of one piece's gradients, batch by batch, of the parameters that some of a pass's slots are parts of.

    Sums of float32 gradients themselves are what autograd adds up; all others are taken over in float32.
    """

    def __init__(self, of: Pass, slots: Mapping[str, Slot]) -> None:
        self._of, self._slots, self._score = of, slots, cast(BackwardScore, of.score)
        self._parameters = parameters_of(slots)
        self._sums: dict[int, torch.Tensor] = {}

    def __enter__(self) -> _Sums:
        for parameter in self._parameters:
            parameter.requires_grad_()
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in self._parameters:
            parameter.grad = None
            parameter.requires_grad_(False)

    def over(self, step: Callable[[str, int, torch.Tensor], None]) -> Iterator[tuple[str, Scores]]:
        """Do a step with every batch (language, number, token ids), which leaves gradients; yield languages' scores."""

        def of_piece(piece: Piece) -> list[torch.Tensor]:
            for batch, ids in piece.batches:
                step(piece.language, batch, ids)
                if batch in piece.ends:  # the gradients of a whole batch are there
                    self._take()
            return self._taken()

        for language, total in totals(self._of.team, self._of.sample.pieces, of_piece, _added):
            if self._slots:
                yield language, self._scores(total)

    def _take(self) -> None:
        """Take over what one batch has left in the gradients."""
        plain = self._score.sums_gradients
        for parameter in self._parameters:
            if parameter.grad is None or (plain and parameter.grad.dtype == torch.float32):
                continue
            gradient = parameter.grad.float()
            if not plain:
                gradient = self._score.contribution(parameter.detach().float(), gradient)
            known = self._sums.get(id(parameter))
            self._sums[id(parameter)] = gradient if known is None else known.add_(gradient)
            parameter.grad = None

    def _taken(self) -> list[torch.Tensor]:
        """Return the sums of all parameters, and begin the next piece's."""
        sums = []
        for parameter in self._parameters:
            total = self._sums.pop(id(parameter), parameter.grad)
            parameter.grad = None
            # no token came by, as with experts that no router chose
            sums.append(torch.zeros(parameter.shape, device=parameter.device) if total is None else total)
        return sums

    def _scores(self, totals: list[torch.Tensor]) -> Scores:
        """Return a language's scores, where its sums are, which are used up."""
        scores = {}
        for parameter in reversed(self._parameters):
            scores[id(parameter)] = self._score.score(parameter.detach().float(), totals.pop())
        return {name: slot.of(lambda parameter: scores[id(parameter)]) for name, slot in self._slots.items()}


def _added(total: list[torch.Tensor], sums: list[torch.Tensor]) -> list[torch.Tensor]:
    """Add the sums of a piece to those of the pieces before it."""
    for known, new in zip(total, sums, strict=True):
        known.add_(new)
    return total
