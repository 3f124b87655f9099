"""A sample is cut into pieces that it alone decides on, and whoever does them, their sums come to the same bits."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from surgeon.scores.base import PIECES
from surgeon.scores.passes import Sample, make_sample, totals
from surgeon.team import ALONE


def sample_of(*batches: int) -> Sample:
    """Languages with so many batches of one sequence, told apart by their first token."""
    names = "abcdefgh"
    sequences = {names[i]: [(100 * i + j, 7, 8) for j in range(count)] for i, count in enumerate(batches)}
    return make_sample(sequences, 1)


@pytest.mark.parametrize("batches", [(3, 3, 3), (1,), (1, 5, 2), (9,), (2, 1, 1, 1, 1, 1)])
def test_every_batch_is_in_a_piece_once_and_in_order(batches: tuple[int, ...]) -> None:
    whole = sample_of(*batches)
    numbers = [number for piece in whole.pieces for number, _ in piece.batches]
    assert numbers == list(range(sum(batches)))
    found = [int(ids[0, 0]) for piece in whole.pieces for _, ids in piece.batches]
    assert found == [int(ids[0, 0]) for ids in whole.all()]
    for language, count in zip("abcdefgh", batches, strict=False):
        sizes = [len(piece.batches) for piece in whole.pieces if piece.language == language]
        assert len(sizes) == min(PIECES, count)
        assert max(sizes) - min(sizes) <= 1


class Backwards:
    """A team that does its items in another order: what comes of them comes in theirs."""

    def map(self, do: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        done = {number: do(items[number]) for number in reversed(range(len(items)))}
        return iter([done[number] for number in range(len(items))])


def test_sums_do_not_depend_on_who_does_the_pieces() -> None:
    whole = sample_of(4, 1, 9)
    values = torch.randn(len(whole.all()), 1000, generator=torch.Generator().manual_seed(0)) * 1e3

    def of_piece(piece: Any) -> torch.Tensor:
        return torch.stack([values[number] for number, _ in piece.batches]).sum(0)

    one = dict(totals(ALONE, whole.pieces, of_piece, torch.Tensor.add_))
    two = dict(totals(Backwards(), whole.pieces, of_piece, torch.Tensor.add_))  # type: ignore[arg-type]
    assert one.keys() == two.keys() == {"a", "b", "c"}
    assert all(torch.equal(one[language], two[language]) for language in one)
    assert torch.allclose(one["c"].double(), values[5:].double().sum(0), atol=1e-2)


def test_no_more_than_two_sums_are_alive() -> None:
    class Sum:
        value = 1

    alive: weakref.WeakSet[Sum] = weakref.WeakSet()
    most = []

    def of_piece(piece: Any) -> Sum:
        made = Sum()
        alive.add(made)
        gc.collect()
        most.append(len(alive))
        return made

    def add(total: Sum, new: Sum) -> Sum:
        total.value += new.value
        return total

    for _, total in totals(ALONE, sample_of(9, 9).pieces, of_piece, add):
        assert total.value == PIECES
        del total
    assert max(most) == 2
