"""What a kind of measurement is: an observer of outputs, with the quantities that it tells.

A model's outputs come by in chunks. For each predicted token an observer says some values; these are summed up by the
pieces of text that it named beforehand (a sentence, a continuation, a task's question), on however many processes. From
the sums of all pieces it makes its figures. Intervals, comparisons with the base, tables and the report are the same
for all kinds, since each figure is a sum over independent pieces divided by the sum of their weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from surgeon.model.results import Figures, Quantity, Sums
from surgeon.recipe.fields import Model

if TYPE_CHECKING:
    import torch

    from surgeon.model.editing import Variant
    from surgeon.model.layer_stack import Stack
    from surgeon.progress import Progress
    from surgeon.text.corpora import Corpus

UNCOUNTED = -100  # in place of a label: the output there is not counted


@dataclass(frozen=True)
class Piece:
    """A piece of text that stands for itself: its group, a language or a task, and the tokens predicted in it."""

    group: str
    tokens: int


@dataclass(frozen=True)
class Batch:
    """Sequences of one length: `inputs` are token ids, int64 of shape (rows, length).

    `labels`, of the same shape, are the ids that the outputs must predict, or `UNCOUNTED`; `numbers` are those of the
    pieces that the predicted tokens belong to, or -1.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    numbers: NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """What is looked at: the pieces by their numbers, and the batches that they are in.

    Batches that share their `inputs`, as one and the same tensor, are run once for all that look at them. `source` is
    what a kind makes its figures with, beside the sums; it does not go to other processes, which make none.
    """

    pieces: Sequence[Piece]
    batches: Sequence[Batch]
    source: Any = None

    def __reduce__(self) -> Any:
        return Pieces, (self.pieces, self.batches)

    def by_group(self, totals: NDArray[np.float64], weights: Sequence[float] | None = None) -> dict[str, Sums]:
        """Return the sums of every group's pieces; their weights are their tokens if not given."""
        weights = [float(piece.tokens) for piece in self.pieces] if weights is None else weights
        groups: dict[str, tuple[list[float], list[float]]] = {}
        for piece, total, weight in zip(self.pieces, totals.tolist(), weights, strict=True):
            of_group = groups.setdefault(piece.group, ([], []))
            of_group[0].append(total)
            of_group[1].append(weight)
        return {group: Sums(tuple(totals), tuple(weights)) for group, (totals, weights) in groups.items()}


@dataclass(frozen=True)
class Subject:
    """What there is to look at: the texts, and the `windows` that perplexity is measured in, for a model's `config`.

    A model sees at most `window` tokens at a time, and `batch_size` sequences of so many.
    """

    tokenizer: Any
    config: Any
    corpus: Corpus
    languages: Sequence[str]
    window: int
    batch_size: int
    windows: Pieces


class Outputs:
    """What a model says of one chunk: `logits` of shape (rows, positions, vocabulary), on its device."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    @cached_property
    def log_probabilities(self) -> torch.Tensor:
        """Natural logarithms of the probabilities, float32 of the logits' shape."""
        return self.logits.float().log_softmax(-1)

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """The probabilities, float32."""
        return self.log_probabilities.exp()

    @cached_property
    def likeliest(self) -> torch.Tensor:
        """The ids of the likeliest tokens, of shape (rows, positions)."""
        return self.logits.argmax(-1)


@dataclass(frozen=True)
class Seen:
    """A chunk as an observer sees it: one model's outputs, the labels, and the base's outputs of the same chunk.

    `base` is None for the base itself, and for an observer that does not compare.
    """

    outputs: Outputs
    labels: torch.Tensor
    base: Outputs | None = None

    @cached_property
    def counted(self) -> torch.Tensor:
        """Which outputs are counted: bool of shape (rows, positions)."""
        return self.labels != UNCOUNTED

    @cached_property
    def losses(self) -> torch.Tensor:
        """Negative log-likelihoods of the labels in nats, float32 of shape (rows, positions); 0 where none is."""
        chosen = self.outputs.log_probabilities.gather(-1, self.labels.clamp_min(0)[..., None])[..., 0]
        return (-chosen).where(self.counted, 0)


class Measurement(Model):
    """Base of all kinds; its fields are the keys that a recipe gives it, under its name in `verify`.

    `compares` says that it needs the base's outputs beside a variant's; of the base itself it then makes no figures.
    `grouped_by` names what its figures are told by, `has_mean` says whether their mean means anything. Raise its
    `version` when the same keys give other figures.
    """

    kind: ClassVar[str]
    description: ClassVar[str]
    version: ClassVar[int] = 1
    on_by_default: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    grouped_by: ClassVar[str] = "language"
    has_mean: ClassVar[bool] = True

    def check(self) -> None:
        """Make sure, before anything is scored or written, that it can be measured here; no model is there yet.

        Raises:
            SurgeonError: a package is missing, or what a key names cannot be used.
        """

    def depends(self) -> Mapping[str, str] | None:
        """Return hashes of what its figures depend on beside recipe, model and texts; None if they cannot be kept."""
        return {}

    @abstractmethod
    def quantities(self) -> Sequence[Quantity]:
        """Return what it tells, the first of them first in every table."""

    def tokens(self) -> int:
        """Return about how many tokens of a language are run for it, beside those of perplexity; a plan counts them."""
        return 0

    def pieces(self, subject: Subject) -> Pieces:
        """Return what it looks at; by default the windows of text that perplexity is measured in.

        Raises:
            InputError: there is nothing to look at.
        """
        return subject.windows

    @abstractmethod
    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return values of each output, by name, of shape (rows, positions); those that are not counted are ignored."""

    def figures(self, pieces: Pieces, sums: Mapping[str, NDArray[np.float64]]) -> Figures:
        """Return a model's figures from the sums of its values by piece, float64 of shape (pieces,).

        By default each value is a quantity, and told per token.
        """
        groups: dict[str, dict[str, Sums]] = {}
        for name, totals in sums.items():
            for group, of_group in pieces.by_group(totals).items():
                groups.setdefault(group, {})[name] = of_group
        return Figures(groups)

    def work(self, stack: Stack, variants: Sequence[Variant], pieces: Pieces, progress: Progress) -> Mapping[str, Any]:
        """Return what is found of each variant, by name, where that takes more of the models than their outputs.

        Such as texts that they go on with. Done on the first rank, after the pass.

        Raises:
            InputError: it cannot be done with this model.
        """
        return {}

    def figures_with(self, pieces: Pieces, sums: Mapping[str, NDArray[np.float64]], own: Any) -> Figures:
        """Return a model's figures from the sums, and from what `work` found of it; by default from the sums alone."""
        return self.figures(pieces, sums)


Item = TypeVar("Item")
End = tuple[Sequence[int], Sequence[int]]  # ids that the last outputs of a sequence predict, and their pieces' numbers


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Return so many items, or all, that lie evenly over them."""
    step = max(len(items) / count, 1)
    return [items[int(number * step)] for number in range(min(count, len(items)))]


def batched(rows: Sequence[tuple[Sequence[int], End]], together: Callable[[int], int]) -> Iterator[Batch]:
    """Yield batches of sequences of token ids, each with its end; of a length so many `together`."""
    import torch

    for alike in alike_in_length(rows, lambda row: len(row[0]), together):
        yield labelled(torch.tensor([ids for ids, _ in alike], dtype=torch.long), [end for _, end in alike])


def labelled(inputs: torch.Tensor, ends: Sequence[End | None]) -> Batch:
    """Return a batch of `inputs`, shape (rows, length), of which each row predicts its end; without one, nothing."""
    import torch

    labels = torch.full_like(inputs, UNCOUNTED)
    numbers = np.full(tuple(inputs.shape), -1, np.int64)
    for row, end in enumerate(ends):
        if end is not None:
            start = inputs.shape[1] - len(end[0])
            labels[row, start:] = torch.tensor(end[0])
            numbers[row, start:] = end[1]
    return Batch(inputs, labels, numbers)


def alike_in_length(
    items: Iterable[Item], length: Callable[[Item], int], together: Callable[[int], int]
) -> Iterator[list[Item]]:
    """Yield items of one length, the longest first, so that what needs most memory comes first."""
    by_length: dict[int, list[Item]] = {}
    for item in items:
        by_length.setdefault(length(item), []).append(item)
    for size in sorted(by_length, reverse=True):
        step = max(together(size), 1)
        for first in range(0, len(by_length[size]), step):
            yield by_length[size][first : first + step]
