"""Tasks of lm-evaluation-harness, with its own metrics: see surgeon/harness.

The harness says once what it would ask a model. What its questions come to, the likelihoods of given ends of texts, is
answered for all models in the one pass; then it is told the answers, model by model, and makes its figures.

A piece is a token of an end. The likelihood of an end is the float32 sum of its tokens', in torch's order, as
lm-evaluation-harness has it, so that figures are the harness's to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from surgeon.errors import InputError
from surgeon.harness import running
from surgeon.harness.folders import content
from surgeon.harness.models import Answer, Question, Questions, Speech, recorder, replayer, speak
from surgeon.measure.base import (
    Batch,
    End,
    Measurement,
    Piece,
    Pieces,
    Seen,
    Subject,
    alike_in_length,
    labelled,
)
from surgeon.model.results import Figures, Quantity
from surgeon.recipe.fields import Count

if TYPE_CHECKING:
    import torch

    from surgeon.model.editing import Variant
    from surgeon.model.layer_stack import Stack
    from surgeon.progress import Progress

_TOGETHER = 4096  # tokens of a batch, at most, so that its attention stays small


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


class Tasks(Measurement):
    """Tasks of lm-evaluation-harness."""

    kind: ClassVar[str] = "tasks"
    description: ClassVar[str] = "tasks of lm-evaluation-harness"
    grouped_by: ClassVar[str] = "task"

    names: Annotated[list[str], Field(min_length=1)] = Field(
        description="names of tasks, groups or tags; a folder with your own tasks ends in `/`"
    )
    limit: Count | None = Field(None, description="questions of each task, from the first; all when left out")
    fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="examples before each question; as the task says when left out"
    )

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, data: Any) -> Any:
        return {"names": data} if isinstance(data, list) else data

    def check(self) -> None:
        """Make sure that the harness is installed, and that folders hold no code."""
        running.check(self.names)

    def depends(self) -> Mapping[str, str] | None:
        """Return the hashes of the folders; None if data come from elsewhere, so that figures are not kept."""
        hashes = {name: content(name) if running.is_folder(name) else None for name in self.names}
        known = {name: value for name, value in hashes.items() if value is not None}
        return {**known, "lm_eval": running.version()} if len(known) == len(hashes) else None

    def quantities(self) -> Sequence[Quantity]:
        """Return nothing: which there are, the tasks say (`Figures.quantities`)."""
        return []

    def pieces(self, subject: Subject) -> Pieces:
        """Have the harness ask a model that notes the questions."""
        tasks = running.load_tasks(self.names, self.limit, self.fewshot)
        questions = Questions()
        with running.quiet():
            asked = recorder(subject.tokenizer, subject.config, questions)
        running.evaluate(asked, tasks)
        asks = question_pieces(list(questions.likelihoods), subject.batch_size)
        return Pieces(asks.pieces, asks.batches, (tasks, questions, subject))

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return the likelihood of each token, and whether it was the likeliest."""
        return token_values(seen)

    def work(
        self, stack: Stack, variants: Sequence[Variant], pieces: Pieces, progress: Progress
    ) -> Mapping[str, dict[Speech, str]]:
        """Have each model continue texts, where tasks ask for that.

        Raises:
            InputError: the model is read anew for every token, so that this would take for ever.
        """
        speeches = list(pieces.source[1].speeches)
        if not speeches:
            return {variant.name: {} for variant in variants}
        if not stack.loaded.weights.stays:
            raise InputError(
                "verify.tasks: a task has the model continue texts (`generate_until`), which takes a model that "
                "stays in memory; this one is read layer by layer. Take tasks of the kinds multiple_choice, "
                "loglikelihood and loglikelihood_rolling, or a GPU that the model fits on"
            )
        return speak(stack, variants, speeches, progress)

    def figures_with(self, pieces: Pieces, sums: Mapping[str, NDArray[np.float64]], own: dict[Speech, str]) -> Figures:
        """Tell the harness the answers, and take over what it makes of them."""
        tasks, questions, subject = pieces.source
        answers = dict(zip(questions.likelihoods, answered(questions.likelihoods, sums), strict=True))
        with running.quiet():
            model = replayer(subject.tokenizer, subject.config, answers, own)
        return running.told(running.evaluate(model, tasks), tasks)
