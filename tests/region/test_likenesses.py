"""Many regions compared at once: the same as two by two."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from surgeon.region.overlap import likenesses, overlap
from surgeon.region.region import Region


def test_likenesses_are_those_of_two_regions() -> None:
    generator = np.random.default_rng(0)
    shapes = {"a": (7, 9), "b": (30,), "c": (4, 5, 6)}
    regions = {
        str(density): Region.from_masks({name: generator.random(shape) < density for name, shape in shapes.items()})
        for density in (0.0, 0.1, 0.5, 1.0)
    }
    found = likenesses(regions)
    assert list(found) == list(itertools.combinations(regions, 2))
    for (left, right), likeness in found.items():
        both = overlap(regions[left], regions[right]).total
        assert likeness.jaccard == pytest.approx(both.jaccard)
        assert likeness.by_chance == pytest.approx(both.by_chance)


def test_tensors_of_one_alone_are_not_shared() -> None:
    full, one = np.ones(4, np.bool_), np.array([True, False, False, False])
    found = likenesses({"x": Region.from_masks({"a": full}), "y": Region.from_masks({"a": one, "b": full})})
    assert found["x", "y"].jaccard == pytest.approx(1 / (4 + 5 - 1))
    apart = likenesses({"x": Region.from_masks({"a": full}), "y": Region.from_masks({"b": full})})
    assert apart["x", "y"].jaccard == 0.0
