"""How a sample is cut over ranks: every batch once, in order, and each rank knows its neighbours in a language."""

from __future__ import annotations

import pytest
import torch

from surgeon.scores.sample import Link, Sample, last_ranks, make_sample, part_of


def sample_of(*batches: int) -> Sample:
    """Languages with so many batches of one sequence, told apart by their first token."""
    names = "abcdefgh"
    sequences = {names[i]: [(100 * i + j, 7, 8) for j in range(count)] for i, count in enumerate(batches)}
    return make_sample(sequences, 1)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("batches", [(3, 3, 3), (1,), (1, 5, 2), (9,), (2, 1, 1, 1, 1, 1)])
def test_every_batch_is_somewhere_once_and_in_order(batches: tuple[int, ...], world: int) -> None:
    whole = sample_of(*batches)
    parts = [part_of(whole, rank, world) for rank in range(world)]
    there = [int(ids[0, 0]) for part in parts for ids in part.all()]
    assert there == [int(ids[0, 0]) for ids in whole.all()]
    counts = [len(part.all()) for part in parts]
    assert max(counts) - min(counts) <= 1
    assert all(part.predicted == whole.predicted for part in parts)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 20])
def test_links_lead_from_the_first_rank_of_a_language_to_its_last(world: int) -> None:
    whole = sample_of(4, 1, 6)
    parts = [part_of(whole, rank, world) for rank in range(world)]
    for language in whole.batches:
        having = [rank for rank in range(world) if language in parts[rank].batches]
        assert last_ranks(whole, world)[language] == having[-1]
        for before, rank, after in zip([None, *having], having, [*having[1:], None], strict=False):
            assert parts[rank].links[language] == Link(before, after)


def test_what_another_rank_waits_for_comes_first() -> None:
    part = part_of(sample_of(9), 1, 3)  # in the middle of a language: it waits, and is waited for
    assert [(language, link) for language, _, link in part.turns()] == [("a", Link(0, 2))]
    part = part_of(sample_of(3, 1, 4), 1, 2)  # all of c but nothing that goes on
    assert [(language, link.after) for language, _, link in part.turns()] == [("c", None)]
    part = part_of(sample_of(3, 1, 4), 0, 3)
    assert [(language, link.after) for language, _, link in part.turns()] == [("a", None)]
    part = part_of(sample_of(3, 1, 6), 0, 2)  # a, b and the first one of c, which goes on elsewhere
    assert [(language, link.after) for language, _, link in part.turns()] == [("c", 1), ("a", None), ("b", None)]
    numbers = {language: [number for number, _ in batches] for language, batches, _ in part.turns()}
    assert numbers == {"a": [0, 1, 2], "b": [3], "c": [4]}
    assert torch.equal(part.all()[4], torch.tensor([[200, 7, 8]]))
