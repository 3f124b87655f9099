"""What a pass of a score on text goes over: batches of token ids per language, in pieces, and hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import torch

from surgeon.anatomy.slots import Slot
from surgeon.errors import CheckpointError, InputError
from surgeon.model.hidden_states import States
from surgeon.model.layer_stack import Stack
from surgeon.scores.base import PIECES, SampledScore
from surgeon.team import ALONE, Team
from surgeon.text.windows import predicted

UNCOUNTED = -100  # in place of a label: nothing is predicted there
Sums = TypeVar("Sums")
Advance = Callable[[int], None]
Scores = dict[str, torch.Tensor]  # float32, non-negative, in the shapes on disk, by name on disk


@dataclass(frozen=True)
class Piece:
    """Some batches of a language that follow one another, each with its number among all. It has a sum of its own.

    Where `rows` of a batch are run at a time, these are parts of batches; `ends` has the numbers of the last ones.
    """

    language: str
    batches: tuple[tuple[int, torch.Tensor], ...]
    ends: frozenset[int]


@dataclass(frozen=True)
class Sample:
    """Token ids by language, in batches (sequences, length), and how many of them are predicted.

    Sums over batches are made piece by piece, and those of a language's pieces added up in their order. The sample
    alone decides where it is cut, so that whoever does a piece, and wherever, the bits are the same. `begun` special
    tokens at the beginning of each sequence are not predicted.
    """

    batches: Mapping[str, Sequence[torch.Tensor]]
    predicted: Mapping[str, int]
    begun: int = 0
    rows: int | None = None

    def labels(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what a batch's outputs must predict, in its shape; `UNCOUNTED` where nothing is predicted."""
        following = torch.cat([ids[:, 1:], torch.full((len(ids), 1), UNCOUNTED)], dim=1)
        following[:, : max(self.begun - 1, 0)] = UNCOUNTED
        return following

    def all(self) -> list[torch.Tensor]:
        """All batches, or their parts, language by language."""
        return [part for batches in self.batches.values() for ids in batches for part in self._parts(ids)]

    def _parts(self, ids: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.split(ids, self.rows or len(ids)))

    @cached_property
    def pieces(self) -> list[Piece]:
        """The pieces of all languages, in order: of each language `PIECES`, or as many as it has batches."""
        pieces, number = [], 0
        for language, batches in self.batches.items():
            count = min(PIECES, len(batches))
            for i, j in pairwise(i * len(batches) // count for i in range(count + 1)):
                parts: list[tuple[int, torch.Tensor]] = []
                ends = set()
                for ids in batches[i:j]:
                    parts += list(enumerate(self._parts(ids), number + len(parts)))
                    ends.add(parts[-1][0])
                pieces.append(Piece(language, tuple(parts), frozenset(ends)))
                number += len(parts)
        return pieces


def make_sample(
    sequences: Mapping[str, Sequence[Sequence[int]]], batch_size: int, begun: int = 0, rows: int | None = None
) -> Sample:
    """Cut each language's sequences of token ids, of which the first `begun` are special, into batches.

    `rows` of a batch are run at a time, if not all.

    Raises:
        InputError: a language has no sequence with a token to predict.
    """
    batches = {}
    for language, texts in sequences.items():
        long_enough = [text for text in texts if predicted(len(text), begun)]
        if not long_enough:
            raise InputError(f"the text for '{language}' is too short to score on: it has no token to predict")
        starts = range(0, len(long_enough), batch_size)
        batches[language] = [torch.tensor(long_enough[start : start + batch_size]) for start in starts]
    counts = {
        language: sum(ids.shape[0] * predicted(ids.shape[1], begun) for ids in of_language)
        for language, of_language in batches.items()
    }
    return Sample(batches, counts, begun, rows)


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass through a model: a score of tensors, by their slots, on a sample of which each of a team does pieces."""

    stack: Stack
    slots: Mapping[str, Slot]
    score: SampledScore
    sample: Sample
    team: Team = ALONE

    @cached_property
    def by_layer(self) -> dict[int, dict[str, Slot]]:
        """The slots by the layer that holds them; -1 stands for what is outside the layers.

        Raises:
            CheckpointError: one lies in several layers.
        """
        stack = self.stack
        home = {id(parameter): number for number in range(len(stack.layers)) for parameter in stack.inner(number)}
        by_layer: dict[int, dict[str, Slot]] = {}
        for name, slot in self.slots.items():
            layers = {home.get(id(parameter), -1) for parameter in slot.parameters}
            if len(layers) > 1:
                raise CheckpointError(
                    f"tensor '{name}' lies in several layers of the model: exclude it, or use magnitude"
                )
            by_layer.setdefault(layers.pop(), {})[name] = slot
        return by_layer

    @cached_property
    def own_batches(self) -> list[tuple[str, int, torch.Tensor]]:
        """The batches that this process does: language, number among all, token ids."""
        own = self.team.own(self.sample.pieces)
        return [(piece.language, number, ids) for piece in own for number, ids in piece.batches]


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


def totals(
    team: Team, pieces: Sequence[Piece], sums: Callable[[Piece], Sums], add: Callable[[Sums, Sums], Sums]
) -> Iterator[tuple[str, Sums]]:
    """Yield the sum of each language's pieces, added up in their order; nothing where others' results do not come.

    `add` may use its arguments up. No more than two sums are there at a time.
    """
    results, total = team.map(sums, pieces), None
    for number, piece in enumerate(pieces):
        result = next(results, None)
        if result is None:
            return
        total = result if total is None else add(total, result)
        del result
        if number + 1 == len(pieces) or pieces[number + 1].language != piece.language:
            yield piece.language, total
            total = None
