"""Sequences as batches, those of one length together; nothing is padded, as not every attention is blind to that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from surgeon.measure.base import UNCOUNTED, Batch

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
End = tuple[Sequence[int], Sequence[int]]  # ids that the last outputs of a sequence predict, and their pieces' numbers


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
