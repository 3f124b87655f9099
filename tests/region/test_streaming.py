"""A cut over tensors that stream by equals the cut over all of them at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from surgeon.region.select import StreamingCut, select_extreme


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=6),
    st.floats(0.0, 1.0),
    st.sampled_from(["top", "bottom"]),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_a_streamed_cut_is_the_whole_cut(sizes, fraction, kind, values, shuffle) -> None:  # type: ignore[no-untyped-def]
    """With many ties, in any order of arrival, down to the last index."""
    random = np.random.default_rng(sum(sizes) + values)
    names = [f"t{i}" for i in range(len(sizes))]
    scores = {
        name: (random.integers(0, values, size) * 0.37).astype(np.float32)
        for name, size in zip(names, sizes, strict=True)
    }
    group = [(name, scores[name].size) for name in names]
    expected = select_extreme(scores.__getitem__, group, fraction, kind)
    cut = StreamingCut(int(fraction * sum(sizes)), kind)
    arrival = list(names)
    shuffle.shuffle(arrival)
    for name in arrival:
        cut.take(name, scores[name])
    found = cut.finish(names)
    for name in names:
        assert found[name].tolist() == expected[name].tolist()


def test_little_more_than_what_is_chosen_is_kept() -> None:
    random = np.random.default_rng(0)
    cut = StreamingCut(1000, "top")
    for i in range(50):
        cut.take(f"t{i}", random.random(10_000, dtype=np.float32))
        assert sum(kept.size for kept, _ in cut._kept.values()) <= 14_000
    assert sum(indices.size for indices in cut.finish([f"t{i}" for i in range(50)]).values()) == 1000
