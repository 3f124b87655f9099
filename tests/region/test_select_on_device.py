"""The cut on the device that made the scores chooses the very entries that numpy does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surgeon.errors import InputError
from surgeon.region.mask import encode_indices
from surgeon.region.select import StreamingCut, at_least, encode_chosen, select_count, select_in_outputs


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
        sizes = [(name, one.size) for name, one in scores.items()]
        chosen = {name: np.flatnonzero(one) for name, one in select_count(scores.__getitem__, sizes, wanted, kind)}
        there = {name: torch.from_numpy(array) for name, array in scores.items()}
        for name, of_tensor in select_count(there.__getitem__, sizes, wanted, kind):
            expected, found = (
                encode_indices(chosen[name], scores[name].shape), encode_chosen(of_tensor, scores[name].shape)
            )  # fmt: skip
            assert isinstance(of_tensor, torch.Tensor)
            assert np.array_equal(found.indices(), chosen[name])
            assert (found.encoding, found.data.tobytes()) == (expected.encoding, expected.data.tobytes())
        if turn % 10:
            continue
        stream = StreamingCut(wanted, kind)
        for name, values in there.items():
            stream.take(name, values)
        for name, indices in stream.finish(list(scores)).items():
            assert np.array_equal(indices, chosen[name])
        name, values = next(iter(there.items()))
        axis = draw.choice([None, *range(values.dim())]) if values.dim() > 1 else None
        share = draw.random()
        outputs = select_in_outputs(name, values, share, kind, axis)
        assert np.array_equal(outputs.numpy(), select_in_outputs(name, scores[name], share, kind, axis))
        least = float(draw.choice(scores[name].flat))
        for one in (values, scores[name]):
            assert np.array_equal(np.asarray(at_least(name, one, least)), scores[name].flatten() >= np.float32(least))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, -1.0, -0.0])
def test_what_is_no_score_is_refused_as_numpy_does(bad: float) -> None:
    scores = np.ones(100, dtype=np.float32)
    scores[17] = bad
    for given in (torch.from_numpy(scores), scores):
        for cut in (
            lambda given: list(select_count({"w": given}.__getitem__, [("w", 100)], 0, "top")),
            lambda given: list(select_count({"w": given}.__getitem__, [("w", 100)], 3, "top")),
            lambda given: StreamingCut(3, "top").take("w", given),
            lambda given: select_in_outputs("w", given, 0.03, "top", None),
            lambda given: at_least("w", given, 0.5),
        ):
            with pytest.raises(InputError, match="tensor 'w' hold values that are negative or not numbers"):
                cut(given)
