"""What a score on text is computed from: batches of token ids per language, and how they pass through a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from surgeon.errors import InputError
from surgeon.model.batches import enter_all
from surgeon.model.slots import Slot
from surgeon.model.stack import Arguments, Stack
from surgeon.model.states import States

Advance = Callable[[int], None]
Scores = dict[str, torch.Tensor]  # float32, non-negative, in the shapes on disk, by name on disk


@dataclass(frozen=True)
class Sample:
    """Token ids by language, in batches (sequences, length), and how many of them are predicted."""

    batches: Mapping[str, Sequence[torch.Tensor]]

    def predicted(self, language: str) -> int:
        """Number of predicted tokens of one language."""
        return sum(ids.shape[0] * (ids.shape[1] - 1) for ids in self.batches[language])

    def all(self) -> list[torch.Tensor]:
        """All batches, language by language."""
        return [ids for batches in self.batches.values() for ids in batches]

    def numbered(self) -> Iterator[tuple[str, list[tuple[int, torch.Tensor]]]]:
        """Yield each language with its batches and their numbers among all."""
        number = 0
        for language, batches in self.batches.items():
            yield language, list(enumerate(batches, number))
            number += len(batches)


def make_sample(sequences: Mapping[str, Sequence[Sequence[int]]], batch_size: int) -> Sample:
    """Cut each language's sequences of token ids into batches.

    Raises:
        InputError: a language has no sequence of two tokens.
    """
    batches = {}
    for language, texts in sequences.items():
        long_enough = [text for text in texts if len(text) > 1]
        if not long_enough:
            raise InputError(f"the text for '{language}' is too short to score on: it gives no sequence of two tokens")
        starts = range(0, len(long_enough), batch_size)
        batches[language] = [torch.tensor(long_enough[start : start + batch_size]) for start in starts]
    return Sample(batches)


def units(stack: Stack, slots: Mapping[str, Slot]) -> dict[int, dict[str, Slot]]:
    """Sort slots by the layer that holds them; -1 stands for what is outside the layers."""
    home = {id(parameter): number for number in range(len(stack.layers)) for parameter in stack.unit(number)}
    result: dict[int, dict[str, Slot]] = {}
    for name, slot in slots.items():
        result.setdefault(home.get(id(slot.parameter), -1), {})[name] = slot
    return result


def parameters_of(slots: Mapping[str, Slot]) -> list[torch.nn.Parameter]:
    """Return the parameters that slots are parts of, each once."""
    return list({id(slot.parameter): slot.parameter for slot in slots.values()}.values())


def enter_sample(stack: Stack, sample: Sample, states: States) -> list[tuple[Arguments, ...]]:
    """Put every batch's embedding into row 0 of `states`; returns each one's arguments of the layers."""
    return enter_all(stack, sample.all(), states)
