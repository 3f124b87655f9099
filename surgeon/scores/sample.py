"""What a score on text is computed from: batches of token ids per language, and how they pass through a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from surgeon.anatomy.slots import Slot
from surgeon.errors import CheckpointError, InputError
from surgeon.model.embedding_and_head import enter_all
from surgeon.model.hidden_states import States
from surgeon.model.layer_stack import Arguments, Stack
from surgeon.text.windows import predicted

UNCOUNTED = -100  # in place of a label: nothing is predicted there
Advance = Callable[[int], None]
Scores = dict[str, torch.Tensor]  # float32, non-negative, in the shapes on disk, by name on disk


@dataclass(frozen=True)
class Link:
    """The ranks that have the batches of a language before and after those of this rank, if others have some."""

    before: int | None = None
    after: int | None = None


@dataclass(frozen=True)
class Sample:
    """Token ids by language, in batches (sequences, length), and how many of them are predicted.

    One rank's part of a sample has some of the batches, and `links` to where the others of their languages are;
    `predicted` are the tokens of all. `begun` special tokens at the beginning of each sequence are not predicted.
    """

    batches: Mapping[str, Sequence[torch.Tensor]]
    predicted: Mapping[str, int]
    links: Mapping[str, Link] = field(default_factory=dict)
    begun: int = 0

    def labels(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what a batch's outputs must predict, in its shape; `UNCOUNTED` where nothing is predicted."""
        following = torch.cat([ids[:, 1:], torch.full((len(ids), 1), UNCOUNTED)], dim=1)
        following[:, : max(self.begun - 1, 0)] = UNCOUNTED
        return following

    def all(self) -> list[torch.Tensor]:
        """All batches, language by language."""
        return [ids for batches in self.batches.values() for ids in batches]

    def numbered(self) -> Iterator[tuple[str, list[tuple[int, torch.Tensor]]]]:
        """Yield each language with its batches and their numbers among all."""
        number = 0
        for language, batches in self.batches.items():
            yield language, list(enumerate(batches, number))
            number += len(batches)

    def turns(self) -> list[tuple[str, list[tuple[int, torch.Tensor]], Link]]:
        """Return the same in the order in which they take their turns in a layer, each with its link.

        What another rank waits for comes first, unless it has itself to wait for a third.
        """
        found = [(language, batches, self.links.get(language, Link())) for language, batches in self.numbered()]
        return sorted(found, key=lambda turn: turn[2].after is None or turn[2].before is not None)


def make_sample(sequences: Mapping[str, Sequence[Sequence[int]]], batch_size: int, begun: int = 0) -> Sample:
    """Cut each language's sequences of token ids, of which the first `begun` are special, into batches.

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
        language: sum(ids.shape[0] * predicted(ids.shape[1], begun) for ids in found)
        for language, found in batches.items()
    }
    return Sample(batches, counts, begun=begun)


def part_of(sample: Sample, rank: int, world: int) -> Sample:
    """Return the batches that one of several ranks takes: a run of all of them, language after language."""
    owners = _owners(sample, world)
    batches = {
        language: [ids for ids, owner in zip(found, owners[language], strict=True) if owner == rank]
        for language, found in sample.batches.items()
    }
    links = {language: _link(owners[language], rank) for language, found in batches.items() if found}
    return Sample({language: batches[language] for language in links}, sample.predicted, links, sample.begun)


def last_ranks(sample: Sample, world: int) -> dict[str, int]:
    """Return the rank that has each language's last batch, and so ends up with its whole sums."""
    return {language: owners[-1] for language, owners in _owners(sample, world).items()}


def _owners(sample: Sample, world: int) -> dict[str, list[int]]:
    total = len(sample.all())
    return {language: [batch * world // total for batch, _ in batches] for language, batches in sample.numbered()}


def _link(owners: Sequence[int], rank: int) -> Link:
    first, last = owners.index(rank), len(owners) - owners[::-1].index(rank)
    return Link(owners[first - 1] if first else None, owners[last] if last < len(owners) else None)


def units(stack: Stack, slots: Mapping[str, Slot]) -> dict[int, dict[str, Slot]]:
    """Sort slots by the layer that holds them; -1 stands for what is outside the layers."""
    home = {id(parameter): number for number in range(len(stack.layers)) for parameter in stack.unit(number)}
    result: dict[int, dict[str, Slot]] = {}
    for name, slot in slots.items():
        layers = {home.get(id(parameter), -1) for parameter in slot.parameters}
        if len(layers) > 1:
            raise CheckpointError(f"tensor '{name}' lies in several layers of the model: exclude it, or use magnitude")
        result.setdefault(layers.pop(), {})[name] = slot
    return result


def parameters_of(slots: Mapping[str, Slot]) -> list[torch.nn.Parameter]:
    """Return the parameters that slots are parts of, each once."""
    return list({id(parameter): parameter for slot in slots.values() for parameter in slot.parameters}.values())


def enter_sample(stack: Stack, sample: Sample, states: States) -> list[tuple[Arguments, ...]]:
    """Put every batch's embedding into row 0 of `states`; returns each one's arguments of the layers."""
    return enter_all(stack, sample.all(), states)
