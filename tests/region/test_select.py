"""Selection against sorting, torch.topk and counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from surgeon.errors import InputError
from surgeon.region.select import (
    entry_count_in_outputs,
    select_evenly,
    select_extreme,
    select_in_outputs,
    select_random,
)
from surgeon.seeds import generator

LEVELS = st.sampled_from([0.0, 1.0, 1.5, 2.0, float(np.float32(1e-30))])
few_values = hnp.arrays(np.float32, st.integers(1, 60), elements=LEVELS)
fractions = st.floats(0.01, 1.0)


def test_behind_an_output_of_a_convolution_are_all_its_channels_and_places() -> None:
    """State space models have weights of shape (channels, 1, width): the first axis of three runs over outputs."""
    scores = np.random.default_rng(0).random((6, 2, 5), dtype=np.float32)
    chosen = np.flatnonzero(select_in_outputs("t", scores, 0.3, "top", 0))
    expected = [row * 10 + i for row in range(6) for i in brute_force(scores[row].reshape(-1), 3, "top")]
    assert chosen.tolist() == expected
    assert entry_count_in_outputs(scores.shape, 0.3, 0) == len(expected)


def brute_force(scores: np.ndarray, k: int, kind: str) -> list[int]:
    """Sort by score, then by index, and take the first k."""
    order = sorted(range(scores.size), key=lambda i: (-scores[i] if kind == "top" else scores[i], i))
    return sorted(order[:k])


@given(few_values, fractions, st.sampled_from(["top", "bottom"]))
def test_a_vector_is_cut_as_a_whole_also_within_outputs(scores: np.ndarray, fraction: float, kind: str) -> None:
    chosen = np.flatnonzero(select_in_outputs("t", scores, fraction, kind, None))  # type: ignore[arg-type]
    assert chosen.tolist() == brute_force(scores, int(fraction * scores.size), kind)


@given(few_values, fractions, st.sampled_from(["top", "bottom"]))
def test_selection_is_sorting_with_ties_to_the_lower_index(scores: np.ndarray, fraction: float, kind: str) -> None:
    chosen = select_extreme(lambda name: scores, [("t", scores.size)], fraction, kind)["t"]
    assert chosen.tolist() == brute_force(scores, int(fraction * scores.size), kind)


@given(st.lists(few_values, min_size=1, max_size=4), fractions, st.sampled_from(["top", "bottom"]))
def test_one_cut_over_several_tensors_is_the_cut_of_their_concatenation(
    parts: list[np.ndarray], fraction: float, kind: str
) -> None:
    tensors = {f"t{i}": part for i, part in enumerate(parts)}
    group = [(name, part.size) for name, part in tensors.items()]
    chosen = select_extreme(tensors.__getitem__, group, fraction, kind)
    offsets = np.cumsum([0, *(part.size for part in parts)])
    found = [int(i) + offset for (_, indices), offset in zip(chosen.items(), offsets, strict=False) for i in indices]
    whole = np.concatenate(parts)
    assert found == brute_force(whole, int(fraction * whole.size), kind)


def test_top_agrees_with_torch() -> None:
    scores = torch.rand(30_000, generator=torch.Generator().manual_seed(0))
    chosen = select_extreme(lambda name: scores.numpy(), [("t", 30_000)], 0.01, "top")["t"]
    assert chosen.tolist() == sorted(torch.topk(scores, 300).indices.tolist())


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="'w'"):
        select_extreme(lambda name: np.array([1.0, np.nan], np.float32), [("w", 2)], 0.5, "top")


@given(st.integers(1, 400), fractions, st.integers(0, 5))
def test_random_takes_exactly_k_distinct_entries(numel: int, fraction: float, seed: int) -> None:
    chosen = select_random([("t", numel)], fraction, seed)["t"]
    assert chosen.size == int(fraction * numel)
    assert np.all(np.diff(chosen) > 0)
    assert not chosen.size or (chosen[0] >= 0 and chosen[-1] < numel)


def test_random_depends_on_seed_and_name_only() -> None:
    draw = [
        select_random([(name, 1000)], 0.01, seed)[name].tolist()
        for name, seed in (("a", 0), ("a", 0), ("a", 1), ("b", 0))
    ]
    assert draw[0] == draw[1]
    assert len({tuple(item) for item in draw}) == 3


@given(st.integers(1, 5000), st.floats(0, 0.5), st.integers(0, 5))
def test_random_takes_the_first_distinct_values_of_its_stream(total: int, fraction: float, seed: int) -> None:
    wanted = int(fraction * total)
    stream, expected = generator(seed, "w"), set[int]()
    while len(expected) < wanted:
        expected.add(int(stream.integers(total, dtype=np.int64)))
    assert select_evenly(total, wanted, seed, "w").tolist() == sorted(expected)


def test_the_random_stream_is_pinned() -> None:
    """One recipe gives one region everywhere, also with the next release of numpy."""
    name = "model.layers.0.mlp.up_proj.weight"
    assert select_random([(name, 1000)], 0.008, 7)[name].tolist() == [22, 34, 175, 209, 260, 461, 832, 949]


def test_random_is_uniform() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        counts[select_random([("t", 20)], 0.25, seed)["t"]] += 1
    assert abs(counts / 2000 - 0.25).max() < 0.05


@given(
    hnp.arrays(np.float32, st.tuples(*[st.integers(1, 6)] * 3), elements=LEVELS),
    fractions,
    st.sampled_from(["top", "bottom"]),
    st.sampled_from([(2, 0), (2, 1), (3, 1), (3, 2)]),
)
def test_each_output_alone_is_sorting_its_inputs(
    scores: np.ndarray, fraction: float, kind: str, layout: tuple[int, int]
) -> None:
    axes, output_axis = layout
    scores = scores[0] if axes == 2 else scores
    chosen = np.flatnonzero(select_in_outputs("t", scores, fraction, kind, output_axis))  # type: ignore[arg-type]
    mask = np.zeros(scores.shape, dtype=bool)
    mask.reshape(-1)[chosen] = True
    input_axis = 2 * axes - 3 - output_axis
    by_output = np.moveaxis(scores, input_axis, -1).reshape(-1, scores.shape[input_axis])
    masks = np.moveaxis(mask, input_axis, -1).reshape(by_output.shape)
    for row, selected in zip(by_output, masks, strict=True):
        assert np.flatnonzero(selected).tolist() == brute_force(row, int(fraction * row.size), kind)
    assert chosen.size == entry_count_in_outputs(scores.shape, fraction, output_axis)
