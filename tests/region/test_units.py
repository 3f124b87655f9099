"""Whole units against plain loops over single entries, and the neurons of one language against the definition."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import ModelMaker

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import place
from surgeon.region.units import Aggregate, Parts, Unit, UnitScores, least_shared, most_entries, parts_of, unit_sizes


def parts_in(folder: Path, unit: Unit) -> dict[str, Parts]:
    checkpoint = Checkpoint.open(folder)
    found = {
        name: parts_of(unit, name, info.shape, place(info, checkpoint.config), checkpoint.config)
        for name, info in checkpoint.tensors.items()
    }
    return {name: part for name, part in found.items() if part is not None}


def chosen_alone(parts: dict[str, Parts], group: str, unit: int) -> dict[str, list[int]]:
    """The entries of one unit in every tensor that has some."""
    sizes = unit_sizes(parts.values())
    wanted = np.zeros(sizes[group].size, dtype=bool)
    wanted[unit] = True
    found = {name: part.entries(wanted).tolist() for name, part in parts.items() if part.group == group}
    return {name: entries for name, entries in found.items() if entries}


def grid(shape: tuple[int, ...], rows: list[int], columns: list[int]) -> list[int]:
    """Flat indices of whole rows and columns, one at a time."""
    width = shape[-1] if len(shape) > 1 else 1
    height = math.prod(shape) // width
    return [r * width + c for r in range(height) for c in range(width) if r in rows or c in columns]


def test_a_neuron_is_its_rows_in_gate_and_up_and_its_column_in_down(make_model: ModelMaker) -> None:
    parts = parts_in(make_model("llama", mlp_bias=True), "neuron")
    prefix = "model.layers.1.mlp"
    assert chosen_alone(parts, prefix, 5) == {
        f"{prefix}.gate_proj.weight": grid((48, 32), [5], []),
        f"{prefix}.gate_proj.bias": [5],
        f"{prefix}.up_proj.weight": grid((48, 32), [5], []),
        f"{prefix}.up_proj.bias": [5],
        f"{prefix}.down_proj.weight": grid((32, 48), [], [5]),
    }


def test_fused_and_transposed_neurons(make_model: ModelMaker) -> None:
    phi = chosen_alone(parts_in(make_model("phi3"), "neuron"), "model.layers.0.mlp", 5)
    assert phi["model.layers.0.mlp.gate_up_proj.weight"] == grid((96, 32), [5, 53], [])
    gpt = chosen_alone(parts_in(make_model("gpt2"), "neuron"), "transformer.h.0.mlp", 5)
    assert gpt == {
        "transformer.h.0.mlp.c_fc.weight": grid((32, 128), [], [5]),
        "transformer.h.0.mlp.c_fc.bias": [5],
        "transformer.h.0.mlp.c_proj.weight": grid((128, 32), [5], []),
    }
    experts = parts_in(make_model("mixtral"), "neuron")
    assert len({part.group for part in experts.values()}) == 8  # two layers of four experts


def test_a_head_is_a_key_value_head_with_the_query_heads_that_share_it(make_model: ModelMaker) -> None:
    parts = parts_in(make_model("qwen2"), "head")  # with biases; four heads, two of keys and values, eight wide
    prefix = "model.layers.0.self_attn"
    assert chosen_alone(parts, prefix, 1) == {
        f"{prefix}.q_proj.weight": grid((32, 32), list(range(16, 32)), []),
        f"{prefix}.q_proj.bias": list(range(16, 32)),
        f"{prefix}.k_proj.weight": grid((16, 32), list(range(8, 16)), []),
        f"{prefix}.k_proj.bias": list(range(8, 16)),
        f"{prefix}.v_proj.weight": grid((16, 32), list(range(8, 16)), []),
        f"{prefix}.v_proj.bias": list(range(8, 16)),
        f"{prefix}.o_proj.weight": grid((32, 32), [], list(range(16, 32))),
    }
    assert "transformer.h.0.attn.c_attn.weight" not in parts_in(make_model("gpt2"), "head")  # fused: cannot be told


def test_an_expert_is_all_its_matrices_on_disk_in_one_tensor_or_in_many(make_model: ModelMaker) -> None:
    parts = parts_in(make_model("qwen3_moe"), "expert")
    whole = chosen_alone(parts, "model.layers.0.mlp.experts", 2)
    assert sorted(whole) == [f"model.layers.0.mlp.experts.2.{name}_proj.weight" for name in ("down", "gate", "up")]
    assert all(entries == list(range(16 * 32)) for entries in whole.values())
    from surgeon.checkpoint.naming import Place

    stacked = parts_of("expert", "model.layers.0.mlp.experts.down_proj", (4, 3, 2), Place(0, "mlp.down", 1), {})
    assert stacked is not None
    assert stacked.entries(np.array([False, True, False, True])).tolist() == [*range(6, 12), *range(18, 24)]


@pytest.mark.parametrize("by", ["sum", "mean", "maximum", "l2"])
@pytest.mark.parametrize("unit", ["row", "column", "neuron", "head"])
def test_a_units_score_is_that_of_its_entries_taken_one_by_one(
    unit: Unit, by: Aggregate, make_model: ModelMaker
) -> None:
    parts = parts_in(make_model("qwen2"), unit)
    scores = {
        name: np.random.default_rng(i).random(math.prod(part.view), dtype=np.float32)
        for i, (name, part) in enumerate(parts.items())
    }
    adding = UnitScores(by)
    entries: dict[tuple[str, int], list[float]] = defaultdict(list)
    for name, part in parts.items():
        adding.add(part, scores[name])
        numbers = part.spread(np.arange(part.count)).reshape(-1)
        for flat, number in enumerate(numbers.tolist()):
            entries[part.group, number].append(float(scores[name][flat]))
    plain = {
        "sum": math.fsum,
        "mean": lambda values: math.fsum(values) / len(values),
        "maximum": max,
        "l2": lambda values: math.sqrt(math.fsum(value * value for value in values)),
    }[by]
    for (group, number), values in entries.items():
        assert float(adding.values(group)[number]) == pytest.approx(plain(values), rel=1e-6)
    sizes = unit_sizes(parts.values())
    assert {(group, i): int(n) for group, one in sizes.items() for i, n in enumerate(one)} == {
        key: len(values) for key, values in entries.items()
    }


def test_how_many_entries_some_units_have() -> None:
    alike, unlike = [np.array([4, 4, 4])], [np.array([4, 2]), np.array([7])]
    assert most_entries(alike, 2) == (8, True)
    assert most_entries(unlike, 2) == (11, False)
    assert most_entries(unlike, 0) == (0, True)


def slow_lape(p: dict[str, list[float]], own: str, fraction: float) -> list[int]:
    """The definition, neuron by neuron: arXiv 2402.16438, section 2.2."""
    every = sorted(value for values in p.values() for value in values)
    bar = every[round(0.95 * len(every)) - 1]
    count = len(next(iter(p.values())))
    entropies = []
    for neuron in range(count):
        here = [values[neuron] for values in p.values()]
        if not any(value > bar for value in here):
            continue
        shares = [value / sum(here) for value in here]
        entropies.append((-sum(share * math.log(share) for share in shares if share > 0), neuron))
    lowest = sorted(entropies)[: int(fraction * count)]
    return sorted(neuron for _, neuron in lowest if p[own][neuron] > bar)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.5, 1.0])
def test_a_languages_own_neurons_are_those_of_the_definition(fraction: float) -> None:
    """With dead neurons, which are active nowhere, and more wanted than any language has."""
    drawn = np.random.default_rng(3).random((3, 400)).astype(np.float32) ** 6
    drawn[:, 10:30] = 0
    p = dict(zip(("ar", "es", "zh"), drawn, strict=True))
    found = []
    for language in p:
        chosen = np.flatnonzero(least_shared(p, language, fraction)).tolist()
        assert chosen == slow_lape({name: values.tolist() for name, values in p.items()}, language, fraction)
        found += chosen
    assert len(found) > 0
    assert not set(found) & set(range(10, 30))


@pytest.mark.parametrize("alternating", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_neuron_of_stacked_experts_is_that_of_one_expert(turned: bool, alternating: bool) -> None:
    """Three experts of two neurons on four dimensions; neuron 3 is the second of the middle one."""
    from surgeon.checkpoint.naming import Place

    name, alone = "model.layers.0.mlp.experts.", np.arange(6) == 3
    pair = [2, 3] if alternating else [1, 3]  # the rows of its gate and its up among an expert's four
    shape = (3, 4, 4)
    numbers = np.arange(48).reshape(shape)
    up = parts_of("neuron", f"{name}gate_up_proj", shape, Place(0, "mlp.gate_up", 2 if turned else 1,
                  branch="experts", alternating=alternating), {})  # fmt: skip
    assert up is not None
    assert (up.group, up.count) == ("model.layers.0.mlp.experts", 6)
    wanted = numbers[1, :, pair] if turned else numbers[1, pair]
    assert up.entries(alone).tolist() == sorted(wanted.flatten().tolist())
    bias = parts_of(
        "neuron", f"{name}gate_up_proj_bias", (3, 4), Place(0, "mlp.gate_up", 1, alternating=alternating), {}
    )
    assert bias is not None
    assert bias.entries(alone).tolist() == [4 + row for row in pair]
    shape = (3, 2, 4) if turned else (3, 4, 2)
    numbers = np.arange(24).reshape(shape)
    down = parts_of("neuron", f"{name}down_proj", shape, Place(0, "mlp.down", 2 if turned else 1), {})
    assert down is not None
    assert down.group == up.group == bias.group
    assert down.entries(alone).tolist() == sorted((numbers[1, 1] if turned else numbers[1, :, 1]).tolist())
    assert parts_of("neuron", f"{name}down_proj_bias", (3, 4), Place(0, "mlp.down", 1), {}) is None
