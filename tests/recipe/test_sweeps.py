"""Sweeps: a grid becomes plain variants, each as if it stood in the recipe itself; a mistake keeps its line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import surgeon
import surgeon.run
import surgeon.scoring
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import RecipeError
from surgeon.recipe.reading import RecipeFile, load_recipe
from surgeon.recipe.schema import resolved_yaml
from surgeon.region.mask import Mask
from surgeon.region.region import Region
from surgeon.report.data import Report

RecipeMaker = Callable[..., Path]

GOOD = """\
version: 1
name: r
model: builtin:tiny30
regions:
  core:
    score: {kind: grad_param, languages: [ar, es]}
    select: {top: 0.01}
  rest: {from: core, select: {bottom: 0.01}}
  both: {combine: core | rest}
  lines: {dimensions: {of: both, rows: 1}}
  one: {entries: [{tensor: mlp.down, columns: [0]}]}
variants:
  cut:
    operations: [{zero: core}]
    sweep:
      fraction:
        set: regions.core.select.top
        to:
          - 0.001
          - 0.03
  plain: {operations: [{zero: rest}]}
verify: {tokens: 8}
output: out/r
"""


def load(folder: Path, **replacements: str) -> RecipeFile:
    text = GOOD
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def problems(folder: Path, **replacements: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(folder, **replacements)
    return [str(problem).removeprefix(str(folder) + "/") for problem in caught.value.problems]


def test_points_are_variants_with_regions_of_their_own(tmp_path: Path) -> None:
    recipe = load(tmp_path).recipe
    assert list(recipe.variants) == ["cut-0.001", "cut-0.03", "plain"]
    assert [recipe.variants[name].operations[0].regions[0] for name in recipe.variants] == [
        "core-0.001",
        "core-0.03",
        "rest",
    ]
    for fraction in (0.001, 0.03):
        point, core = recipe.regions[f"core-{fraction}"], recipe.regions["core"]
        assert point.score == core.score
        assert point.select is not None
        assert point.select.top == fraction
    assert not recipe.variants["cut-0.03"].write
    assert recipe.variants["plain"].write


def test_the_grid_is_the_product_and_only_what_a_point_uses_is_copied(tmp_path: Path) -> None:
    file = load(tmp_path, **{
        "set: regions.core.select.top": "set: [regions.core.select.top, regions.rest.select.bottom]",
        "      fraction:": "      kind: {set: operations.0.zero, to: [core, rest]}\n      fraction:",
    })  # fmt: skip
    assert file.sweeps["cut"].axes == {"kind": ("core", "rest"), "fraction": (0.001, 0.03)}
    assert file.sweeps["cut"].points == {
        "cut-core-0.001": ("core", 0.001), "cut-core-0.03": ("core", 0.03),
        "cut-rest-0.001": ("rest", 0.001), "cut-rest-0.03": ("rest", 0.03),
    }  # fmt: skip
    made = set(file.recipe.regions) - set(file.as_written.regions)
    assert made == {"core-0.001", "core-0.03", "rest-0.001", "rest-0.03"}
    assert file.recipe.regions["rest-0.03"].from_ == "core"  # whose score is the same at all points


def test_regions_made_from_a_swept_one_follow_it(tmp_path: Path) -> None:
    recipe = load(tmp_path, **{"[{zero: core}]": "[{zero: lines}, {scale: both, by: 2}, {zero: rest}]"}).recipe
    assert [operation.regions[0] for operation in recipe.variants["cut-0.03"].operations] == [
        "lines-0.03", "both-0.03", "rest"
    ]  # fmt: skip
    assert recipe.regions["lines-0.03"].kind.parents == ["both-0.03"]
    assert recipe.regions["both-0.03"].kind.described(None, str) == ["core-0.03 | rest"]


def test_a_swept_score_is_followed_by_those_who_take_it(tmp_path: Path) -> None:
    swept = {"regions.core.select.top": "regions.core.score.samples", "- 0.001": "- 4", "- 0.03": "- 8"}
    recipe = load(tmp_path, **swept, **{"[{zero: core}]": "[{zero: rest}]"}).recipe
    assert recipe.variants["cut-8"].operations[0].regions[0] == "rest-8"
    score = recipe.score_of("rest-8")
    assert score is not None
    assert score.on_text is not None
    assert score.on_text.samples == 8


def test_lists_and_whole_operations_can_be_swept(tmp_path: Path) -> None:
    entries = {"regions.core.select.top": "regions.one.entries.0.columns", "[{zero: core}]": "[{zero: one}]"}
    recipe = load(tmp_path, **entries, **{"- 0.001": "- [12]", "- 0.03": "- [7, 77]"}).recipe
    assert list(recipe.variants) == ["cut-12", "cut-7_77", "plain"]
    assert recipe.regions["one-7_77"].kind.model_dump()[0]["columns"] == [7, 77]
    whole = {"regions.core.select.top": "operations.0"}
    recipe = load(tmp_path, **whole, **{"- 0.001": "- {zero: rest}", "- 0.03": "- {scale: core, by: 0}"}).recipe
    assert list(recipe.variants) == ["cut-zero_rest", "cut-scale_core_by_0", "plain"]


def test_two_sweeps_share_equal_regions_and_keep_others_apart(tmp_path: Path) -> None:
    second = """\
  again:
    operations: [{scale: core, by: 2}]
    sweep: {fraction: {set: regions.core.select.top, to: [0.03]}}
  other:
    operations: [{zero: core}]
    sweep: {scope: {set: regions.core.score.samples, to: [0.03]}}
  plain"""
    found = problems(tmp_path, **{"  plain": second})
    assert found == [
        "recipe.yaml:26: regions.other.core-0.03.score.samples: input should be a valid integer (got 0.03)"
    ]
    recipe = load(tmp_path, **{"  plain": second.replace("samples, to: [0.03]", "samples, to: [3]")}).recipe
    assert recipe.variants["again-0.03"].operations[0].regions[0] == "core-0.03"
    assert list(recipe.regions)[5:] == ["core-0.001", "core-0.03", "core-3"]


MISTAKES = {
    "value": ("- 0.03", "- 3", "recipe.yaml:20: regions.core-3.select.top: input should be less than or equal to 1"),
    "text": ("- 0.03", "- 1e-2", "recipe.yaml:20: regions.core-1e-2.select.top: YAML reads 1e-2 as text"),
    "twice": ("- 0.03", "- 0.001", "recipe.yaml:20: the value 0.001 is given twice"),
    "region": ("regions.core.", "regions.coer.", "recipe.yaml:17: no region 'coer'; did you mean 'core'?"),
    "key": ("select.top", "select.topp", "recipe.yaml:19: unknown key 'topp'; did you mean 'top'?"),
    "no place": ("select.top", "score.languages.7", "recipe.yaml:17: the recipe has no such place as regions.core"),
    "elsewhere": ("regions.core.select.top", "verify.tokens", "recipe.yaml:17: 'verify.tokens' cannot be swept"),
    "a very long key": ("regions.core.select.top", "operations" + ".0" * 10_000, "recipe.yaml:17: 'operations.0.0"),
    "operand": ("regions.core.select.top", "operations.0.zero", "recipe.yaml:19: variants.cut-0.001.operations.0"),
    "no effect": ("{zero: core}", "{zero: rest}", "recipe.yaml:16: cut-0.001 and cut-0.03 would be the same"),
    "name": ("  plain:", "  cut-0.03:", "recipe.yaml:15: 'cut-0.03' would be the name of two variants"),
    "expectation": (
        "tokens: 8", "tokens: 8, expect: [{variant: cut-0.3, ratio_at_least: 2}]",
        "recipe.yaml:22: no variant 'cut-0.3'; did you mean 'cut-0.03'?",
    ),
    "no values": ("to:\n          - 0.001\n          - 0.03", "to: []", "recipe.yaml:18: variants.cut.sweep"),
    "axis": ("        set:", "        sett:", "recipe.yaml:17: unknown key 'sett'; did you mean 'set'?"),
    "freeze": ("    operations: [{zero: core}]", "    freeze: core", "say `write: true`"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line(mistake: str, tmp_path: Path) -> None:
    old, new, message = MISTAKES[mistake]
    found = problems(tmp_path, **{old: new})
    assert any(message in problem for problem in found), found


def test_all_mistakes_come_at_once_and_those_of_a_sweep_next(tmp_path: Path) -> None:
    of_a_sweep = {"- 0.001": "- 4", "- 0.03": "- 3"}
    found = problems(tmp_path, **of_a_sweep, **{"name: r": "nmae: r", "{zero: rest}": "{zero: rset}"})
    assert [line.split(": ", 1)[0] for line in found] == [f"recipe.yaml:{line}" for line in (1, 2, 21)]
    found = problems(tmp_path, **of_a_sweep)
    assert [line.split(": ", 1)[0] for line in found] == [f"recipe.yaml:{line}" for line in (19, 20)]


def test_mistakes_in_several_axes_come_at_once(tmp_path: Path) -> None:
    others = "      a: {set: regions.coer.select.top, to: [0.1]}\n      b: {set: [verify.tokens, name], to: [1, 1]}\n"
    found = problems(tmp_path, **{"      fraction:": f"{others}      fraction:"})
    assert [problem.split(" ", 1)[1] for problem in found] == [
        "no region 'coer'; did you mean 'core'?",
        "'verify.tokens' cannot be swept: give a key of a region or operation, such as regions.core.select.top",
        "'name' cannot be swept: give a key of a region or operation, such as regions.core.select.top",
        "the value 1 is given twice",
    ]


def test_a_mistake_at_all_points_is_named_once(tmp_path: Path) -> None:
    grid = "      again: {set: operations.0.by, to: [1, two, 3]}\n      fraction:"
    found = problems(tmp_path, **{"{zero: core}": "{scale: core, by: 1}", "      fraction:": grid})
    assert len(found) == 1
    assert found[0].startswith("recipe.yaml:16: variants.cut-two-0.001.operations.0.by: ")


def test_what_is_written_cannot_name_what_a_sweep_adds(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, **{"{zero: rest}": "{zero: core-0.03}"})
    assert found == "recipe.yaml:21: no region 'core-0.03'; did you mean 'core'?"


def steps(folder: Path, points: int) -> int:
    """How many instructions of ours it takes to load a sweep over so many points."""
    values = "".join(f"          - {(i + 1) / 1000}\n" for i in range(points))
    load(folder, **{"          - 0.001\n          - 0.03\n": values})
    taken = 0

    def traced(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        nonlocal taken
        if "surgeon" not in Path(frame.f_code.co_filename).parts:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        taken += event == "opcode"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        load_recipe(folder / "recipe.yaml")
    finally:
        sys.settrace(before)
    return taken


def test_the_work_grows_with_the_number_of_points_and_no_faster(tmp_path: Path) -> None:
    five, ten, twenty = (steps(tmp_path, points) for points in (5, 10, 20))
    assert twenty - ten == pytest.approx(2 * (ten - five), rel=0.02)


def test_a_grid_too_large_to_carry_out_is_refused(tmp_path: Path) -> None:
    axes = "".join(f"      a{i}: {{set: operations.0.by, to: {list(range(60))}}}\n" for i in range(8))
    found = problems(
        tmp_path, **{"{zero: core}": "{scale: core, by: 1}", "      fraction:\n": f"{axes}      fraction:\n"}
    )
    assert found == ["recipe.yaml:15: its points would have more than 200,000 values in all"]


def test_many_keys_at_many_points_are_refused(tmp_path: Path) -> None:
    keys, values = ["operations.0.zero"] * 20_000, list(range(20_000))
    found = problems(tmp_path, **{
        "set: regions.core.select.top": f"set: {keys}", "to:\n          - 0.001\n          - 0.03": f"to: {values}",
    })  # fmt: skip
    assert found == ["recipe.yaml:15: its points would have more than 200,000 values in all"]


def test_a_value_that_closes_a_circle_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, **{
        "set: regions.core.select.top": "set: regions.both.combine", "- 0.001": "- core", "- 0.03": "- lines | core",
        "[{zero: core}]": "[{zero: both}]",
    })  # fmt: skip
    assert found == ["recipe.yaml:15: at cut-lines_core region 'both' is made from itself, in a circle"]


def test_regions_made_from_one_in_many_ways_are_followed_once(tmp_path: Path) -> None:
    """Each of thirty uses the next one twice: a billion ways from the first to the last."""
    ladder = "".join(f"  a{i}: {{combine: a{i + 1} & ~a{i + 1}}}\n" for i in range(30)) + "  a30: {combine: core}\n"
    recipe = load(tmp_path, **{"regions:\n": f"regions:\n{ladder}", "[{zero: core}]": "[{zero: a0}]"}).recipe
    assert recipe.regions["a0-0.03"].kind.described(None, str) == ["a1-0.03 & ~a1-0.03"]


def test_a_mistake_outside_of_the_sweep_is_named_once(tmp_path: Path) -> None:
    found = problems(tmp_path, **{"languages: [ar, es]": "languages: 7"})
    assert len(found) == 1
    assert found[0].startswith("recipe.yaml:6: regions.core.score.languages: ")


def test_a_plan_s_problem_points_at_the_value(tmp_path: Path) -> None:
    load(tmp_path, **{"- 0.001": "- 0.00000001"})
    with pytest.raises(RecipeError, match=r"recipe\.yaml:19: region 'core-1e-08' selects nothing"):
        surgeon.plan_recipe(tmp_path / "recipe.yaml")


def test_the_recipe_as_written_gives_the_same_points_again(tmp_path: Path) -> None:
    first = load(tmp_path)
    (tmp_path / "again.yaml").write_text(resolved_yaml(first.as_written), encoding="utf-8")
    again = load_recipe(tmp_path / "again.yaml")
    assert (again.recipe, again.as_written, again.sweeps) == (first.recipe, first.as_written, first.sweeps)


def test_overrides_reduce_a_sweep(tmp_path: Path) -> None:
    load(tmp_path)
    file = load_recipe(tmp_path / "recipe.yaml", ["variants.cut.sweep.fraction.to=[0.5]"])
    assert list(file.recipe.variants) == ["cut-0.5", "plain"]
    with pytest.raises(RecipeError, match=r"--set variants.cut.sweep.fraction.to: .*less than or equal to 1"):
        load_recipe(tmp_path / "recipe.yaml", ["variants.cut.sweep.fraction.to=[5]"])


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False)
values = st.recursive(scalars, lambda c: st.lists(c, max_size=2) | st.dictionaries(st.text(max_size=4), c, max_size=2))
places = st.sampled_from([
    "regions.core.select.top", "regions.core.select", "regions.lines.dimensions.of", "regions.lines.dimensions",
    "regions.both.combine", "regions.rest.from", "regions.one.entries.0", "regions.one.entries.9.columns",
    "operations.0", "operations.0.zero", "operations", "operations.0.zero.deeper", "regions.core", "regions", "",
])  # fmt: skip


@given(places, st.lists(values, max_size=3), st.sampled_from(["core", "lines", "one", "rest"]))
def test_no_sweep_whatever_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, place: str, swept: list[object], region: str
) -> None:
    data = yaml.safe_load(GOOD)
    data["variants"]["cut"] = {"operations": [{"zero": region}], "sweep": {"axis": {"set": place, "to": swept}}}
    path = tmp_path_factory.mktemp("r") / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with contextlib.suppress(RecipeError):  # anything else would reach the user as a traceback
        file = load_recipe(path)
        assert len(file.sweeps["cut"].points) == len(swept)
        assert set(file.sweeps["cut"].points) <= set(file.recipe.variants)


SWEPT = {
    "  cut: {operations: [{zero: core}]}": """\
  cut:
    operations: [{zero: core}]
    sweep:
      kind: {set: operations.0.zero, to: [core, random]}
      fraction: {set: [regions.core.select.top, regions.random.select.random], to: [0.01, 0.05, 0.2]}""",
}


def test_a_sweep_measures_what_the_written_variants_would(recipe: RecipeMaker, llama: Path, tmp_path: Path) -> None:
    report = surgeon.apply(recipe(**SWEPT))
    assert not (tmp_path / "out" / "variants").exists()
    assert {path.name.partition(".")[0] for path in (tmp_path / "out" / "regions").iterdir()} == {
        "core", "bottom", "random"
    }  # fmt: skip
    points = report.sweeps["cut"].points
    assert list(points.values()) == [[kind, share] for kind in ("core", "random") for share in (0.01, 0.05, 0.2)]
    for kind, share in (("core", 0.05), ("random", 0.2)):
        key = "top" if kind == "core" else "random"
        data = yaml.safe_load(recipe().read_text())
        data["regions"][kind]["select"][key] = share
        data["variants"] = {"alone": {"operations": [{"zero": kind}]}}
        (tmp_path / "alone.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        alone = surgeon.apply(tmp_path / "alone.yaml", output=tmp_path / f"alone-{kind}")
        assert alone.perplexity["alone"] == report.perplexity[f"cut-{kind}-{share}"]
        assert alone.variants["alone"].entries == report.variants[f"cut-{kind}-{share}"].entries
    again = surgeon.apply(tmp_path / "out" / "recipe.yaml", output=tmp_path / "again")
    assert (again.perplexity, again.sweeps) == (report.perplexity, report.sweeps)


def test_points_are_written_when_asked_for(recipe: RecipeMaker, llama: Path, tmp_path: Path) -> None:
    swept = "sweep: {fraction: {set: regions.core.select.top, to: [0.01, 0.2]}}"
    surgeon.apply(
        recipe(**{"cut: {operations: [{zero: core}]}": f"cut: {{operations: [{{zero: core}}], write: true, {swept}}}"})
    )
    out = tmp_path / "out"
    assert {path.name for path in (out / "variants").iterdir()} == {"cut-0.01", "cut-0.2"}
    for name in ("0.01", "0.2"):
        region = Region.load(out / "regions" / f"core-{name}.region.safetensors")
        base, cut = Checkpoint.open(llama), Checkpoint.open(out / "variants" / f"cut-{name}")
        for tensor in region:
            mask = region.mask(tensor)
            assert (cut.array(tensor) == (~mask * base.array(tensor))).all()


def test_a_sweep_scores_once(recipe: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    from surgeon.scores.score_pass import ScorePass

    real, scored = ScorePass.run, []

    def counted(self, *rest):  # type: ignore[no-untyped-def]
        scored.append(list(self.sequences))
        return real(self, *rest)

    monkeypatch.setattr(ScorePass, "run", counted)
    surgeon.apply(recipe(**SWEPT))
    assert scored == [["de", "fr"]]


def test_the_regions_of_points_are_not_kept(recipe: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """All points are measured together, and yet no mask of theirs stays in memory, however many points there are."""
    import gc

    import surgeon.model.variant_pass as forward

    alive: list[int] = []
    real = forward.edited

    def watched(*arguments):  # type: ignore[no-untyped-def]
        gc.collect()
        alive.append(sum(type(item) is Mask for item in gc.get_objects()))
        return real(*arguments)

    monkeypatch.setattr(forward, "edited", watched)
    gc.freeze()  # what is there already need not be looked through each time
    swept = """\
  cut:
    operations: [{zero: lines}]
    sweep: {rows: {set: regions.lines.dimensions.rows, to: [1, 2, 3, 4, 5, 6, 7, 8]}}"""
    lines = "regions:\n  lines: {dimensions: {of: core, rows: 1}}\n"
    try:
        surgeon.apply(recipe(**{"  cut: {operations: [{zero: core}]}": swept, "regions:\n": lines}))
    finally:
        gc.unfreeze()
    assert len(alive) >= 2 * 9
    assert max(alive) == alive[0]


def test_the_shipped_sweep(tmp_path: Path) -> None:
    """The grid at one fraction, on fewer languages; the recipe's own expectations hold."""
    overrides = ["variants.zeroed.sweep.fraction.to=[0.01]", "verify.languages=[en, ar, zh]", "verify.tokens=64"]
    overrides += ["regions.core.score.samples=2", "regions.core.score.languages=[ar, es]"]
    report = surgeon.apply("sweep", output=tmp_path / "out", overrides=overrides)
    assert report.passed
    assert len(report.expectations) == 3
    assert report.sweeps["zeroed"].points == {
        f"zeroed-{kind}-0.01": [kind, 0.01] for kind in ("core", "bottom", "random")
    }
    assert (tmp_path / "out" / "figures" / "sweep-zeroed.svg").is_file()
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["summary"]["zeroed-core-0.01"]["ratio_to_base"] > 1.5
    assert Report.load(tmp_path / "out" / "report.json") == report
