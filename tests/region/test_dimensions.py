"""Regions by layer, role, row, column and residual dimension, against counts done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.checkpoint.naming import places_of
from surgeon.region.dimensions import SPREAD_AT, along, hidden_size, profile, residual_axis
from surgeon.region.region import Region

LLAMA = {
    "model.embed_tokens.weight": (100, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_norm.weight": (4,),
    "model.layers.0.self_attn.q_proj.weight": (16, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.k_proj.bias": (4,),
    "model.layers.0.self_attn.o_proj.weight": (8, 16),
    "model.layers.0.self_attn.o_proj.bias": (8,),
    "model.layers.0.mlp.up_proj.weight": (20, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 20),
    "model.layers.0.mlp.experts.down_proj": (3, 20, 8),
}
GPT2 = {
    "h.0.attn.c_attn.weight": (8, 24),
    "h.0.attn.c_proj.weight": (8, 8),
    "h.0.mlp.c_fc.weight": (8, 32),
    "h.0.mlp.c_proj.weight": (32, 8),
}


def axes(shapes: dict[str, tuple[int, ...]], config: dict[str, str]) -> list[int | None]:
    places = places_of(shapes, config)
    hidden = hidden_size(shapes, places)
    assert hidden == 8
    return [residual_axis(shape, places[name], hidden) for name, shape in shapes.items()]


def test_residual_axis_of_each_role() -> None:
    assert axes(LLAMA, {}) == [1, 0, None, 1, 1, None, 0, 0, 1, 0, 2]
    assert axes(GPT2, {"model_type": "gpt2"}) == [0, 1, 0, 1]


def test_along_is_the_coordinate() -> None:
    shape = (3, 4, 5)
    flat = np.arange(60)
    for axis, coordinates in enumerate(np.unravel_index(flat, shape)):
        np.testing.assert_array_equal(along(flat, shape, axis), coordinates)


def test_dimensions_that_recur_are_found() -> None:
    """Row 5 of every writer and column 5 of every reader, over a thin background."""
    generator = np.random.default_rng(0)
    masks = {}
    for name, shape in LLAMA.items():
        masks[name] = generator.random(shape) < 0.02
    masks["model.layers.0.self_attn.q_proj.weight"][:, 5] = True
    masks["model.layers.0.mlp.up_proj.weight"][:, 5] = True
    masks["model.layers.0.mlp.down_proj.weight"][5, :] = True
    found = profile(Region.from_masks(masks), {})
    assert found.hidden_size == 8
    first = found.dimensions[0]
    expected = sum(
        int(np.take(masks[name], 5, axis).sum())
        for name, axis in zip(LLAMA, axes(LLAMA, {}), strict=True)
        if axis is not None
    )
    assert (first.index, first.hits) == (5, expected)
    assert first.slots == 100 + 1 + 16 + 4 + 16 + 1 + 20 + 20 + 60
    assert first.tensors >= 3


def test_cells_count_every_entry_once() -> None:
    masks = {name: np.ones(shape, np.bool_) for name, shape in LLAMA.items()}
    found = profile(Region.from_masks(masks), {})
    assert sum(cell.entries for cell in found.cells) == sum(cell.numel for cell in found.cells)
    assert {(cell.layer, cell.role): cell.numel for cell in found.cells}[0, "attn.k"] == 4 * 8 + 4


def test_spread_says_how_entries_crowd() -> None:
    crowded = np.zeros((200, 50), np.bool_)
    crowded[17] = True  # one row in two hundred holds everything
    spread = profile(Region.from_masks({"model.layers.0.mlp.down_proj.weight": crowded}), {}).spreads["mlp.down"]
    assert spread.rows[SPREAD_AT.index(0.005)] == pytest.approx(1.0)
    assert spread.columns == pytest.approx(SPREAD_AT)


def test_an_empty_region_has_an_empty_profile() -> None:
    found = profile(Region.from_masks({"model.layers.0.mlp.up_proj.weight": np.zeros((20, 8), np.bool_)}), {})
    assert found.dimensions == ()
    assert found.spreads == {}


def test_traces_are_the_share_of_each_dimension() -> None:
    """Counted tensor by tensor; tensors of one role in one layer count together."""
    generator = np.random.default_rng(3)
    masks = {name: generator.random(shape) < 0.3 for name, shape in LLAMA.items()}
    traces = {(trace.layer, trace.role): trace.shares for trace in profile(Region.from_masks(masks), {}).traces}
    prefix = "model.layers.0."
    np.testing.assert_allclose(traces[0, "attn.q"], masks[f"{prefix}self_attn.q_proj.weight"].mean(axis=0))
    down, experts = masks[f"{prefix}mlp.down_proj.weight"], masks[f"{prefix}mlp.experts.down_proj"]
    hits = down.sum(axis=1) + experts.sum(axis=(0, 1))
    np.testing.assert_allclose(traces[0, "mlp.down"], hits / (20 + 60))
    bias, matrix = masks[f"{prefix}self_attn.o_proj.bias"], masks[f"{prefix}self_attn.o_proj.weight"]
    np.testing.assert_allclose(traces[0, "attn.o"], (bias.astype(int) + matrix.sum(axis=1)) / 17)
    np.testing.assert_allclose(traces[0, "norm"], masks[f"{prefix}input_layernorm.weight"])
