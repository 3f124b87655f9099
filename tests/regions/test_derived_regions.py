"""Regions made from other regions and from places, against Python's sets and plain loops over entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import surgeon
from surgeon.anatomy.scope import scope
from surgeon.errors import RecipeError
from surgeon.region.region import Region
from surgeon.regions.combined import MOST_SIGNS, parse
from surgeon.regions.dimensions import fullest_lines, residual_dimensions
from surgeon.regions.entries import entry, lines

SETS = {"a": {0, 1, 2, 3}, "b": {2, 3, 4}, "core-3.x": {0, 4, 5}}
EVERYTHING = set(range(8))
REGIONS = {name: Region.from_indices({"t": np.array(sorted(s))}, {"t": (8,)}) for name, s in SETS.items()}

expressions = st.recursive(
    st.sampled_from(sorted(SETS)),
    lambda inner: st.one_of(
        inner.map(lambda e: f"~({e})"),
        st.tuples(inner, st.sampled_from("&|-"), inner).map(lambda e: f"({e[0]} {e[1]} {e[2]})"),
        st.tuples(inner, st.sampled_from("&|-"), inner).map(lambda e: f"{e[0]} {e[1]} {e[2]}"),
    ),
    max_leaves=6,
)


@given(expressions)
def test_algebra_is_that_of_python_sets(text: str) -> None:
    """Python reads the same text, with its own precedence and its own sets."""

    class Set(set):  # type: ignore[type-arg]
        def __invert__(self) -> Set:
            return Set(EVERYTHING - self)

        def __and__(self, other: object) -> Set:
            return Set(super().__and__(other))  # type: ignore[operator]

        def __or__(self, other: object) -> Set:
            return Set(super().__or__(other))  # type: ignore[operator]

        def __sub__(self, other: object) -> Set:
            return Set(super().__sub__(other))  # type: ignore[operator]

    names = {"a": Set(SETS["a"]), "b": Set(SETS["b"]), "c": Set(SETS["core-3.x"])}
    expected = eval(text.replace("core-3.x", "c"), {}, names)
    assert set(parse(text).evaluate(REGIONS).indices("t").tolist()) == expected


@pytest.mark.parametrize("text", ["", "a -", "a b", "(a", "a)", "& a", "a + b", "~", "a & | b", "()"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"lacks|cannot be read"):
        parse(text)


def test_long_expressions_are_read_within_limits() -> None:
    """Reading and evaluating are recursive, so that what is very long, or very deep, is refused."""
    for text in (
        "~" * MOST_SIGNS + "a",
        "b - " * MOST_SIGNS + "a",
        "(" * (MOST_SIGNS // 2) + "a" + ")" * (MOST_SIGNS // 2),
    ):
        assert parse(text).evaluate(REGIONS).indices("t").size < 8
        for longer in (f"~{text}", f"({text})", "(" * 100_000 + text):
            with pytest.raises(ValueError, match="more than 200 signs"):
                parse(longer)


@given(st.sampled_from([(3, 4), (5,), (2, 3, 4)]), st.data())
def test_lines_and_entries_against_a_loop(shape: tuple[int, ...], data: st.DataObject) -> None:
    columns = shape[-1] if len(shape) > 1 else 1
    rows = int(np.prod(shape)) // columns
    some_rows = data.draw(st.lists(st.integers(0, rows - 1), max_size=2))
    some_columns = data.draw(st.lists(st.integers(0, columns - 1), max_size=2))
    expected = [i for i in range(rows * columns) if i // columns in some_rows or i % columns in some_columns]
    assert lines(shape, some_rows, some_columns).tolist() == expected
    for flat, index in enumerate(product(*map(range, shape))):
        assert entry(shape, index).tolist() == [flat]
    with pytest.raises(ValueError, match=r"row 99 is outside shape"):
        lines(shape, [99], [])
    with pytest.raises(ValueError, match=r"is outside shape"):
        entry(shape, shape)


def test_fullest_lines_and_their_control() -> None:
    generator = np.random.default_rng(0)
    mask = generator.random((12, 9)) < 0.2
    mask[7] = mask[:, 4] = True
    region = Region.from_masks({"model.layers.0.mlp.up_proj.weight": mask})
    found = fullest_lines(region, 1, 1).mask("model.layers.0.mlp.up_proj.weight")
    expected = np.zeros_like(mask)
    expected[7] = expected[:, 4] = True
    assert np.array_equal(found, expected)
    control = fullest_lines(region, 1, 1, control=0).mask("model.layers.0.mlp.up_proj.weight")
    assert control.sum() == expected.sum()
    assert not control[7].all()
    assert not control[:, 4].all()
    assert fullest_lines(region, 1, 1, control=0) == fullest_lines(region, 1, 1, control=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_residual_dimensions_are_the_same_in_all_tensors(family: str, make_model: Callable[..., Path]) -> None:
    """Counted with a dictionary over the axis that each family's own code feeds from or to the residual stream."""
    checkpoint = surgeon.Checkpoint.open(make_model(family))
    inputs_last = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    first = {"o_proj", "down_proj", "c_attn", "c_fc", "input_layernorm", "post_attention_layernorm", "ln_1", "ln_2"}
    axes = {}
    for info in scope(checkpoint).tensors:
        module = info.name.split(".")[-2]
        if module in inputs_last or (module == "c_proj" and len(info.shape) == 2):
            axes[info.name] = 1
        elif (module in first and not info.name.endswith("c_attn.bias") and not info.name.endswith("c_fc.bias")) or (
            module == "c_proj"
        ):
            axes[info.name] = 0
    generator = np.random.default_rng(1)
    masks = {name: generator.random(checkpoint.info(name).shape) < 0.1 for name in axes}
    for name, axis in axes.items():
        np.moveaxis(masks[name], axis, 0)[5] = True
    region = Region.from_masks(masks)
    hits: Counter[int] = Counter()
    for name, axis in axes.items():
        for index in np.argwhere(masks[name]):
            hits[int(index[axis])] += 1
    (winner, _), (second, _) = hits.most_common(2)
    assert winner == 5
    found = residual_dimensions(region, 2, checkpoint.config)
    for name, axis in axes.items():
        expected = np.zeros(checkpoint.info(name).shape, bool)
        np.moveaxis(expected, axis, 0)[[winner, second]] = True
        assert np.array_equal(found.mask(name), expected)
    control = residual_dimensions(region, 2, checkpoint.config, control=0)
    assert control.entries == found.entries
    assert (control & found).entries < found.entries


DERIVED = """\
  early: {select: {random: 0.1}, layers: [0, 0]}
  rest: {combine: "(core | random) & ~bottom - early"}
  one: {entries: [{tensor: model.layers.1.input_layernorm.weight, index: [3]}, {tensor: mlp.down, rows: [2]}]}
  lines: {dimensions: {of: core, rows: 2, columns: 1}}
  others: {dimensions: {of: core, rows: 2, columns: 1, random: true}}
  residual: {dimensions: {of: rest, residual: 2}}
variants:
"""


def test_derived_regions_by_recipe(recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe(
        **{"variants:\n": DERIVED, "{zero: core}": "{zero: rest}, {scale: one, by: 4}, {fill: lines, value: 0}"}
    )
    planned = surgeon.plan_recipe(path).regions
    surgeon.score(path)

    def load(name: str) -> Region:
        return Region.load(tmp_path / "out" / "regions" / f"{name}.region.safetensors")

    core, bottom, random, early = (load(name) for name in ("core", "bottom", "random", "early"))
    assert all(".layers.0." in name for name in early)
    assert load("rest") == (core | random) & (~bottom - early)
    one = load("one")
    assert one.indices("model.layers.1.input_layernorm.weight").tolist() == [3]
    assert one.indices("model.layers.0.mlp.down_proj.weight").tolist() == list(range(96, 144))
    assert one.metadata["made_from"]["entries"][0]["index"] == [3]
    assert load("lines") == fullest_lines(core, 2, 1)
    assert load("others").entries == load("lines").entries
    for name, plan in planned.items():
        found = load(name)
        assert set(found) == {info.name for info in plan.tensors}
        assert found.entries == plan.entries if plan.exact else found.entries <= plan.entries
    report = surgeon.apply(path)
    assert {name: region.origin for name, region in report.regions.items()}["rest"] == "combine"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("entries: [{tensor: norm, index: [999]}]", "index [999] is outside shape [32]"),
        ("entries: [{tensor: mlp.dwon, rows: [1]}]", "'mlp.dwon' names no role and no tensor"),
        ("entries: [{tensor: mlp.down, columns: [48]}]", "column 48 is outside shape [32, 48]"),
        ("dimensions: {of: core, rows: 999999}", "999999 rows: the tensors of region 'core' have at most 48"),
        ("dimensions: {of: core, rows: 1, columns: 49}", "49 columns: the tensors of region 'core' have at most 48"),
        (
            "dimensions: {of: core, residual: 33}",
            "33 residual dimensions: the tensors of region 'core' have at most 32",
        ),
        ("dimensions: {of: core, residual: 17, random: true}", "17 residual dimensions at random besides the fullest"),
        ("{select: {random: 0.1}, layers: [7, 9]}", "no tensor of the model is in its scope"),
    ],
)
def test_places_that_the_model_has_not(spec: str, message: str, recipe: Callable[..., Path]) -> None:
    text = spec if spec.startswith("{") else f"{{{spec}}}"
    with pytest.raises(RecipeError) as caught:
        surgeon.plan_recipe(recipe(**{"variants:\n": f"  extra: {text}\nvariants:\n"}))
    assert message in str(caught.value)
    assert str(caught.value).count("recipe.yaml:") == 1
