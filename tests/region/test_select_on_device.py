"""The cut on the device that made the scores chooses the very entries that numpy does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surgeon.errors import InputError
from surgeon.region.region import encode_indices
from surgeon.region.select import select_count, select_in_outputs
from surgeon.region.select_on_device import (
    select_count_on_device,
    select_in_outputs_on_device,
    select_least_on_device,
)
from surgeon.region.streaming import StreamingCut


def test_a_thousand_random_groups_with_ties() -> None:
    draw = np.random.default_rng(0)
    for turn in range(1000):
        shapes = [tuple(draw.integers(1, 30, size=draw.integers(1, 4))) for _ in range(draw.integers(1, 4))]
        values = draw.choice([1, 2, 5, 1000])  # of so many different scores: nearly all are ties, or few
        scores = {
            f"t{i}": np.abs(draw.integers(0, values, size=shape) * draw.choice([1e-30, 0.1, 1e30])).astype(np.float32)
            for i, shape in enumerate(shapes)
        }
        for array in scores.values():
            array[draw.random(array.shape) < 0.05] = draw.choice([0.0, np.inf, 1e-45])
        total = sum(array.size for array in scores.values())
        wanted = int(draw.choice([0, 1, total, draw.integers(0, total + 1)]))
        kind = "top" if draw.random() < 0.5 else "bottom"
        expected = select_count(scores.__getitem__, [(name, one.size) for name, one in scores.items()], wanted, kind)
        given = [(name, torch.from_numpy(array)) for name, array in scores.items()]
        found = select_count_on_device(given, wanted, kind)
        for name, array in scores.items():
            mask = encode_indices(expected[name], array.shape)
            assert np.array_equal(found[name].indices(), expected[name])
            assert (found[name].encoding, found[name].data.tobytes()) == (mask.encoding, mask.data.tobytes())
        if turn % 10:
            continue
        stream = StreamingCut(wanted, kind)
        for name, values in given:
            stream.take(name, values)
        for name, indices in stream.finish(list(scores)).items():
            assert np.array_equal(indices, expected[name])
        name, values = given[0]
        axis = draw.choice([None, *range(values.dim())]) if values.dim() > 1 else None
        share = draw.random()
        outputs = select_in_outputs_on_device(name, values, share, kind, axis).indices()
        assert np.array_equal(outputs, select_in_outputs(name, scores[name], share, kind, axis))
        least = float(draw.choice(scores[name].flat))
        at_least = select_least_on_device(name, values, least).indices()
        assert np.array_equal(at_least, np.flatnonzero(scores[name] >= np.float32(least)))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, -1.0, -0.0])
def test_what_is_no_score_is_refused_as_numpy_does(bad: float) -> None:
    scores = np.ones(100, dtype=np.float32)
    scores[17] = bad
    there = torch.from_numpy(scores)
    for cut in (
        lambda: select_count_on_device([("w", there)], 0, "top"),
        lambda: select_count_on_device([("w", there)], 3, "top"),
        lambda: StreamingCut(3, "top").take("w", there),
        lambda: select_in_outputs_on_device("w", there, 0.03, "top", None),
        lambda: select_least_on_device("w", there, 0.5),
    ):
        with pytest.raises(InputError, match="tensor 'w' hold values that are negative or not numbers"):
            cut()
    with pytest.raises(InputError):
        select_count({"w": scores}.__getitem__, [("w", 100)], 3, "top")
