"""How the regions of a plan come about: from scores, from other regions, or from the cache, whichever is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surgeon.api import plan_recipe
from surgeon.plan.plan import Plan
from surgeon.region.region import Region
from surgeon.regions import cut
from surgeon.regions.control import Control
from surgeon.regions.dimensions import fullest_lines, residual_dimensions
from surgeon.regions.make import Scored, make_regions

RecipeMaker = Callable[..., Path]
MORE = """\
  both: {combine: core | bottom}
  below: {combine: core | bottom, include: [mlp.down]}
  again: {combine: both - core}
  lines: {dimensions: {of: core, rows: 2, columns: 1}}
  others: {dimensions: {of: core, rows: 2, columns: 1, random: true, seed: 3}}
  residual: {dimensions: {of: core, residual: 2}}
  other-residual: {dimensions: {of: core, residual: 2, random: true, seed: 3}}
  drawn: {control: {of: core, seed: 1}}
  lowest: {control: {of: core, draw: bottom}}
  of-random: {control: {of: random}}
  of-both: {control: {of: both}}
  by-layer: {from: core, select: {top: 0.02, scope: layer}}
variants:
"""


@pytest.fixture
def plan(light_recipe: RecipeMaker) -> Plan:
    return plan_recipe(light_recipe(**{"variants:\n": MORE}))


def scored(plan: Plan, reader: Callable[[str], Any] | None = None, **given: Any) -> Scored:
    """Scores as a run hands them over: here those of magnitude, by plain numpy."""
    (score,) = plan.scores()
    readers = {"": reader or (lambda name: np.abs(plan.checkpoint.array(name)))}
    return Scored(score, **{"readers": readers, **given})


def made(plan: Plan, scored: Scored, names: list[str], known: Mapping[str, Region] | None = None) -> dict[str, Region]:
    return make_regions(plan.provenance(1), [scored], names, known or {})


def largest(plan: Plan, names: list[str], share: float) -> dict[str, list[int]]:
    """The entries of largest magnitude of some tensors together, by a plain sort."""
    found = [
        (-abs(float(value)), name, i)
        for name in names
        for i, value in enumerate(plan.checkpoint.array(name).reshape(-1))
    ]
    chosen = sorted(found, key=lambda item: item[0])[: int(share * len(found))]
    return {name: sorted(i for _, other, i in chosen if other == name) for name in names}


def indices(region: Region) -> dict[str, list[int]]:
    return {name: region.indices(name).tolist() for name in region}


def test_selected_regions_are_those_of_a_plain_sort_tensor_by_tensor_or_layer_by_layer(plan: Plan) -> None:
    found = made(plan, scored(plan), ["by-layer", "core"])
    assert list(found) == ["by-layer", "core"]
    names = [info.name for info in plan.regions["core"].tensors]
    assert indices(found["core"]) == {name: largest(plan, [name], 0.05)[name] for name in names}
    for layer in ("layers.0.", "layers.1."):
        inside = [name for name in names if layer in name]
        expected = largest(plan, inside, 0.02)
        assert {name: found["by-layer"].indices(name).tolist() for name in inside} == expected


def test_what_is_derived_is_made_of_its_parts_and_says_of_what(plan: Plan) -> None:
    found = made(plan, scored(plan), list(plan.regions))
    core, bottom, config = found["core"], found["bottom"], plan.checkpoint.config
    assert found["both"] == core | bottom
    assert found["again"] == (core | bottom) - core
    assert list(found["below"]) == [name for name in core if name.endswith("mlp.down_proj.weight")]
    assert all(found["below"].indices(name).tolist() == found["both"].indices(name).tolist() for name in found["below"])
    assert found["lines"] == fullest_lines(core, 2, 1)
    assert found["others"] == fullest_lines(core, 2, 1, 3, "others") != found["lines"]
    assert found["residual"] == residual_dimensions(core, 2, config)
    assert (
        found["other-residual"] == residual_dimensions(core, 2, config, 3, label="other-residual") != found["residual"]
    )
    for name in ("both", "lines", "of-both"):
        assert found[name].metadata["model"] == plan.checkpoint.source.path.name
    assert found["again"].metadata["made_from"] == {"combine": "both - core"}
    assert found["others"].metadata["made_from"]["dimensions"] == {
        "of": "core", "rows": 2, "columns": 1, "random": True, "seed": 3,
    }  # fmt: skip
    assert core.metadata["select"]["top"] == 0.05
    assert "made_from" not in core.metadata


def test_controls_have_as_many_entries_and_the_lowest_go_by_the_score(plan: Plan) -> None:
    found = made(plan, scored(plan), list(plan.regions))
    for control, of in (("drawn", "core"), ("lowest", "core"), ("of-random", "random"), ("of-both", "both")):
        counts = {name: found[of][name].entries for name in found[of]}
        assert {name: found[control][name].entries for name in found[control]} == counts
        assert found[control] != found[of]
    for name in found["core"]:
        values = np.abs(plan.checkpoint.array(name).reshape(-1))
        count = found["core"][name].entries
        assert sorted(values[found["lowest"].indices(name)]) == sorted(values)[:count]


def test_what_is_known_is_taken_as_it_is_also_as_a_part(plan: Plan) -> None:
    tensors = plan.regions["core"].tensors
    shapes = {info.name: info.shape for info in tensors}
    known = Region.from_indices({name: np.array([5]) for name in shapes}, shapes)
    found = made(plan, scored(plan), ["both", "core"], {"core": known})
    assert found["core"] is known
    assert all(5 in found["both"].indices(name) for name in shapes)
    bottom = made(plan, scored(plan), ["bottom"])["bottom"]
    assert found["both"].entries == (known | bottom).entries


def test_what_was_selected_or_drawn_before_needs_no_scores(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ["core", "bottom", "random", "drawn", "lowest", "of-random", "by-layer"]
    first = made(plan, scored(plan), kept)

    def fail(*_: Any) -> Any:
        pytest.fail("was made again")

    monkeypatch.setattr(cut, "Cut", fail)
    monkeypatch.setattr(Control, "indices", fail)
    monkeypatch.setattr(plan.regions["random"].kind.__class__, "_draw", fail)
    again = make_regions(plan.provenance(2), [scored(plan, fail)], kept, {})
    assert {name: indices(region) for name, region in again.items()} == {
        name: indices(region) for name, region in first.items()
    }


def test_other_scores_or_another_control_are_not_found_in_the_cache(plan: Plan, light_recipe: RecipeMaker) -> None:
    made(plan, scored(plan), ["core", "drawn", "lowest"])

    def turned(name: str) -> np.ndarray:  # the ranks by magnitude, the largest first
        values = plan.checkpoint.array(name)
        return np.argsort(np.argsort(-np.abs(values), axis=None)).astype(np.float32).reshape(values.shape)

    other = made(plan, scored(plan, turned, keys={"de": "f" * 64}), ["core", "lowest"])
    name = next(iter(other["core"]))
    values = np.abs(plan.checkpoint.array(name).reshape(-1))
    count = other["core"][name].entries
    assert sorted(values[other["core"].indices(name)]) == sorted(values)[:count]
    assert sorted(values[other["lowest"].indices(name)]) == sorted(values)[-count:]


def test_regions_that_a_sweep_has_selected_already_are_taken_and_kept(plan: Plan) -> None:
    tensors = plan.regions["core"].tensors
    ready = {
        label: Region.from_indices(
            {info.name: np.array([i]) for info in tensors}, {info.name: info.shape for info in tensors}
        )
        for i, label in enumerate(("core", "lowest"))
    }
    for scores in (scored(plan, readers=None, regions=ready), scored(plan)):  # the second time from the cache
        found = made(plan, scores, ["core", "lowest"])
        assert {label: indices(region) for label, region in found.items()} == {
            label: indices(region) for label, region in ready.items()
        }
