"""How likely given ends of given texts are: what tasks ask of a model, as pieces, batches and answers.

A piece is a token of an end. The likelihood of an end is the float32 sum of its tokens', in torch's order, as
lm-evaluation-harness has it, so that figures are the harness's to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from surgeon.harness.models import Answer, Question
from surgeon.measure.base import Batch, Measurement, Piece, Pieces, Seen
from surgeon.measure.batches import End, alike_in_length, labelled
from surgeon.model.results import Figures, Quantity

if TYPE_CHECKING:
    import torch

    from surgeon.model.editing import Variant
    from surgeon.model.layer_stack import Stack
    from surgeon.progress import Progress

_TOGETHER = 4096  # tokens of a batch, at most, so that its attention stays small


def answer_all(
    stack: Stack, variants: Sequence[Variant], questions: Sequence[Question], rows: int, progress: Progress
) -> dict[str, dict[Question, Answer]]:
    """Return what models answer to questions, by variant, in one pass through the layers; `rows` texts go together."""
    from surgeon.measure.measuring import Look, measure

    class Answers(Measurement):
        """The answers alone, as samples; no recipe asks for it."""

        kind: ClassVar[str] = "answers"
        description: ClassVar[str] = "answers of tasks"

        def quantities(self) -> Sequence[Quantity]:
            return []

        def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
            return token_values(seen)

        def figures(self, pieces: Pieces, sums: Mapping[str, NDArray[np.float64]]) -> Figures:
            return Figures(samples=tuple({"answer": one} for one in answered(questions, sums)))

    look = Look(Answers(), question_pieces(questions, rows), frozenset(variant.name for variant in variants))
    found = measure(stack, variants, [look], progress)
    return {
        name: {one: sample["answer"] for one, sample in zip(questions, by_kind["answers"].samples, strict=True)}
        for name, by_kind in found.items()
    }


def question_pieces(questions: Sequence[Question], rows: int) -> Pieces:
    """Return a piece for each token of the questions' ends, in order, and batches of at most so many texts."""
    starts = np.cumsum([0, *(len(end) for _, end in questions)]).tolist()
    return Pieces([Piece("", 1)] * int(starts[-1]), list(_batches(questions, starts, rows)))


def token_values(seen: Seen) -> dict[str, torch.Tensor]:
    """Return the likelihood of each token in nats, and 1 where it was the likeliest."""
    greedy = seen.outputs.likeliest == seen.labels
    return {"likelihood": -seen.losses, "greedy": greedy.float()}


def answered(questions: Iterable[Question], sums: Mapping[str, NDArray[np.float64]]) -> Iterator[Answer]:
    """Yield the answers to questions from the values of their tokens."""
    import torch

    start = 0
    for _, end in questions:
        tokens = slice(start, start + len(end))
        start = tokens.stop
        yield (
            float(torch.tensor(sums["likelihood"][tokens], dtype=torch.float32).sum()),
            bool(sums["greedy"][tokens].all()),
        )


def _batches(asks: Sequence[Question], starts: Sequence[int], size: int) -> Iterator[Batch]:
    """Put questions of one length together, unpadded; those that read the same are run once for all their ends.

    Batches with the same `inputs` are one for the pass: the first holds the first end of each row, and so on.
    """
    import torch

    asked: dict[tuple[int, ...], list[End]] = {}
    for (read, end), start in zip(asks, starts, strict=False):
        asked.setdefault(read, []).append((end, range(start, start + len(end))))
    for reads in alike_in_length(asked, len, lambda length: min(size, _TOGETHER // length)):
        inputs = torch.tensor(reads)
        for turn in range(max(len(asked[read]) for read in reads)):
            yield labelled(inputs, [asked[read][turn] if turn < len(asked[read]) else None for read in reads])
