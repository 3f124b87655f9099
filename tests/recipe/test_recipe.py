"""Recipes: what is right is read, and every mistake gets a line and a remedy."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from surgeon.api import shipped_recipes
from surgeon.errors import InputError, RecipeError
from surgeon.recipe.reading import load_recipe
from surgeon.recipe.schema import Recipe, recipe_schema, resolved_yaml

GOOD = """\
version: 1
name: r
model: builtin:tiny30
regions:
  core:
    score: {kind: grad_param, languages: [ar, es]}
    select: {top: 0.01}
  rest: {from: core, select: {bottom: 0.01}, exclude: [norm]}
variants:
  cut: {operations: [{zero: core}]}
verify:
  expect: [{variant: cut, ratio_at_least: 2}]
output: out/r
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text))
    return [str(problem).removeprefix(str(folder) + "/") for problem in caught.value.problems]


def test_a_good_recipe_and_its_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD)).recipe
    assert recipe.corpus == "builtin:udhr30"
    assert recipe.score_of("rest") == recipe.regions["core"].score
    assert recipe.regions["core"].select is not None
    assert recipe.regions["core"].select.scope == "tensor"
    assert recipe.variants["cut"].write


MISTAKES = {
    "unknown key": ("top: 0.01", "topp: 0.01", "recipe.yaml:7: unknown key 'topp'; did you mean 'top'?"),
    "unknown key of a score": (
        "languages: [ar, es]}", "languages: [ar, es], sampels: 3}",
        "recipe.yaml:6: unknown key 'sampels'; did you mean 'samples'?",
    ),
    "unknown top-level key": ("output:", "outptu:", "recipe.yaml:13: unknown key 'outptu'; did you mean 'output'?"),
    "missing key": ("model: builtin:tiny30\n", "", "recipe.yaml:1: 'model' is missing"),
    "fraction": ("top: 0.01", "top: 1.5", "recipe.yaml:7: regions.core.select.top: input should be less than or equal"),
    "zero": ("top: 0.01", "top: 0", "recipe.yaml:7: regions.core.select.top: input should be greater than 0"),
    "text for a number": ("top: 0.01", "top: 1e-2", "recipe.yaml:7: regions.core.select.top: YAML reads 1e-2 as text"),
    "a small number as text": ("top: 0.01", "top: 1e-05", "text, not as a number; write 1.0e-05"),
    "one": ("top: 0.01", "top: 1", "recipe.yaml:7: regions.core.select.top: 1 would be all entries: write 0.01"),
    "percent": ("top: 0.01", "top: 5", "less than or equal to 1 (got 5; 5 % is 0.05)"),
    "infinity": ("top: 0.01", "top: .inf", "recipe.yaml:7: .inf is not a finite number"),
    "no": ("[ar, es]", "[ar, no]", "recipe.yaml:6: YAML reads the bare word `no` as false; write 'no' in quotes"),
    "region": ("{zero: core}", "{zero: coer}", "recipe.yaml:10: no region 'coer'; did you mean 'core'?"),
    "operation": ("{zero: core}", "{zeroo: core}", "recipe.yaml:10: unknown operation 'zeroo'; did you mean 'zero'?"),
    "algebra": (
        "from: core, select: {bottom: 0.01}, exclude: [norm]", "combine: core -",
        "recipe.yaml:8: regions.rest.combine: 'core -' lacks a region's name at its end",
    ),
    "algebra's names": (
        "from: core, select: {bottom: 0.01}, exclude: [norm]", "combine: core & coer",
        "recipe.yaml:8: no region 'coer'; did you mean 'core'?",
    ),
    "circle of regions": (
        "from: core, select: {bottom: 0.01}, exclude: [norm]", "dimensions: {of: rest, rows: 1}",
        "recipe.yaml:8: region 'rest' is made from itself",
    ),
    "two origins": ("from: core, ", "combine: core, ", "recipe.yaml:8: regions.rest: a region given by combine takes"),
    "two operations": ("{zero: core}", "{zero: core, scale: core}", "recipe.yaml:10: unknown key 'scale'"),
    "no operation": ("{zero: core}", "zero", "recipe.yaml:10: unknown operation 'zero'; did you mean 'zero'?"),
    "argument": ("{zero: core}", "{scale: core}", "recipe.yaml:10: 'variants.cut.operations.0.by' is missing"),
    "argument's name": ("{zero: core}", "{scale: core, byy: 2}", "unknown key 'byy'; did you mean 'by'?"),
    "argument's type": ("{zero: core}", "{scale: core, by: 1e3}", "operations.0.by: YAML reads 1e3 as text"),
    "argument's line": (
        "{zero: core}",
        "{scale: core,\n    by: many}",
        "recipe.yaml:11: variants.cut.operations.0.by: ",
    ),
    "filling": ("{zero: core}", "{fill: core}", "recipe.yaml:10: variants.cut.operations.0: give exactly one of value"),
    "noise": ("{zero: core}", "{noise: core, relative: 0}", "operations.0.relative: input should be greater than 0"),
    "restore": ("{zero: core}", "{restore: core}", "recipe.yaml:10: 'variants.cut.operations.0.from' is missing"),
    "from": ("from: core", "from: cor", "recipe.yaml:8: no region 'cor'; did you mean 'core'?"),
    "circle": ("from: core", "from: rest", "recipe.yaml:8: region 'rest' has no score to take"),
    "variant": ("variant: cut", "variant: cat", "recipe.yaml:12: no variant 'cat'; did you mean 'cut'?"),
    "bound": (", ratio_at_least: 2", "", "recipe.yaml:12: verify.expect.0: give ratio_at_least or ratio_at_most"),
    "measurement": (
        "ratio_at_least: 2", "measurement: divergense, at_least: 1",
        "recipe.yaml:12: no measurement 'divergense'; did you mean 'divergence'?",
    ),
    "measurement that is not made": (
        "ratio_at_least: 2", "measurement: choice, at_least: 1",
        "recipe.yaml:12: choice is not measured: give it its key in `verify`",
    ),
    "quantity": (
        "ratio_at_least: 2", "measurement: divergence, quantity: klo, at_least: 1",
        "recipe.yaml:12: divergence has no quantity 'klo'; did you mean 'kl'?",
    ),
    "change of a comparison": (
        "ratio_at_least: 2", "measurement: divergence, change_at_least: 1",
        "recipe.yaml:12: kl compares with the base already",
    ),
    "bound without a measurement": ("ratio_at_least: 2", "at_least: 2", "verify.expect.0: say which measurement"),
    "two selections": ("top: 0.01", "top: 0.01, random: 0.1", "recipe.yaml:7: regions.core.select: give exactly one"),
    "monolingual": ("top: 0.01", "top: 0.01, monolingual: de", "recipe.yaml:7: 'de' is not scored"),
    "file name": ("  cut:", "  ../cut:", "recipe.yaml:10: variant name '../cut' cannot name a folder"),
    "base": ("  cut:", "  base:", "recipe.yaml:10: variant name 'base' cannot name a folder"),
    "twice": ("name: r\n", "name: r\nname: s\n", "recipe.yaml:3: the key 'name' is given twice"),
    "version": ("version: 1", "version: 2", "recipe.yaml:1: version: input should be 1 (got 2)"),
    "yaml": ("version: 1", "version: [1", "not YAML"),
    "stride": ("verify:\n", "verify:\n  stride: 300\n", "recipe.yaml:11: verify: stride 300 is longer than the window"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line(mistake: str, tmp_path: Path) -> None:
    old, new, message = MISTAKES[mistake]
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new, 1))
    assert any(message in problem for problem in found), found


def test_norwegian_as_a_key_is_caught_and_in_quotes_is_fine(tmp_path: Path) -> None:
    corpus = "corpus: {no: a.txt}\noutput:"
    assert any("the bare word `no`" in p for p in problems(tmp_path, GOOD.replace("output:", corpus)))
    quoted = load_recipe(write(tmp_path, GOOD.replace("output:", corpus.replace("no:", "'no':")))).recipe
    assert quoted.corpus == {"no": "a.txt"}


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("top: 0.01", "top: 7").replace("{zero: core}", "{zero: coer}").replace("name: r", "nmae: r")
    found = problems(tmp_path, text)
    assert [problem.split(":")[1] for problem in found] == ["1", "2", "7", "10"]


def test_names_are_looked_up_where_something_else_is_wrong_too(tmp_path: Path) -> None:
    text = GOOD.replace("{zero: core}", "{zero: coer}, {scale: [core, kore], by: two}, {zreo: core}, 3")
    text = text.replace("{from: core, select: {bottom: 0.01}", "{from: cor, select: {bottom: 7}")
    found = problems(tmp_path, text)
    for name in ("cor", "coer", "kore"):
        assert any(f"no region '{name}'; did you mean 'core'?" in problem for problem in found), found
    assert any("unknown operation 'zreo'" in problem for problem in found)
    assert [problem.split(":")[1] for problem in found] == ["8", "8", *["10"] * 6]


def test_overrides_reach_any_field_and_are_named_in_errors(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    overrides = ["model=elsewhere", "verify.tokens=99", "regions.core.score.languages.1=ru"]
    recipe = load_recipe(path, overrides).recipe
    assert (recipe.model, recipe.verify and recipe.verify.tokens) == ("elsewhere", 99)
    assert recipe.score_of("core") is not None
    assert recipe.score_of("core").languages == ["ar", "ru"]  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"--set verify.tokens: input should be a valid integer"):
        load_recipe(path, ["verify.tokens=many"])
    with pytest.raises(InputError, match="write --set PATH=VALUE"):
        load_recipe(path, ["verify"])
    with pytest.raises(InputError, match=r"--set name.x=1: the recipe has no such place"):
        load_recipe(path, ["name.x=1"])


def test_an_override_of_a_name_that_is_not_there_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    for override, message in {
        "regions.kore.select.top=0.1": "--set regions.kore.select.top: no region 'kore'; did you mean 'core'?",
        "variants.cat.write=false": "--set variants.cat.write: no variant 'cat'; did you mean 'cut'?",
    }.items():
        with pytest.raises(InputError) as caught:
            load_recipe(path, [override])
        assert str(caught.value) == message
    assert "new" in load_recipe(path, ["regions.new={select: {random: 0.1}}"]).recipe.regions


def test_an_override_s_value_is_yaml_by_the_rules_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=r"--set verify.languages.0: YAML reads the bare word `no` as false"):
        load_recipe(path, ["verify.languages=[x]", "verify.languages.0=no"])
    with pytest.raises(RecipeError, match=r"--set name: lists and mappings are nested more than"):
        load_recipe(path, ["name=" + "[" * 60_000])
    assert load_recipe(path, ["regions.core.include=[x]", "regions.core.include.0=*.weight"]).recipe.regions[
        "core"
    ].include == ["*.weight"]  # no YAML, and so the text that it is


def test_all_of_a_share_must_be_meant(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace("top: 0.01", "top: 1.0"))).recipe
    assert recipe.regions["core"].select is not None
    assert recipe.regions["core"].select.top == 1
    assert load_recipe(write(tmp_path, resolved_yaml(recipe))).recipe == recipe


def test_a_corpus_of_files_is_resolved_to_the_same_corpus(tmp_path: Path) -> None:
    corpus = "corpus: {ar: {file: a.jsonl, field: body}, es: {dataset: org/es, split: test}, ru: r.txt}\noutput:"
    recipe = load_recipe(write(tmp_path, GOOD.replace("output:", corpus))).recipe
    assert load_recipe(write(tmp_path, resolved_yaml(recipe))).recipe == recipe


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + "".join(f"key{i}: 1\n" for i in range(300)))
    assert len(found) == 101
    assert found[0].startswith("recipe.yaml:14: unknown key 'key0'")
    assert found[-1] == "recipe.yaml:114: and more, from here on"
    (one,) = problems(tmp_path, GOOD + "x" * 100_000 + ": 1\n")
    assert len(one) < 1200


def test_chains_of_regions_end(tmp_path: Path) -> None:
    """What follows regions to those that they are made from does so within limits."""

    def chain(key: str, length: int) -> str:
        rows = "".join(f"  a{i}: {{{key.format(f'a{i + 1}')}}}\n" for i in range(length))
        return GOOD.replace("regions:\n", f"regions:\n{rows}  a{length}: {{combine: core}}\n")

    assert len(load_recipe(write(tmp_path, chain("combine: {}", 20))).recipe.regions) == 23
    assert any(
        "is made from a chain of more than 32 others" in p for p in problems(tmp_path, chain("combine: {}", 5000))
    )
    taken = "from: {}, select: {{top: 0.1}}"
    assert any("has no score to take" in p for p in problems(tmp_path, chain(taken, 5000)))


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        load_recipe(write(tmp_path, "- a\n- b\n"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1: longer than 1,048,576 bytes"):
        load_recipe(write(tmp_path, GOOD + "# " + "x" * (1 << 20)))
    with pytest.raises(InputError, match="cannot read the recipe"):
        load_recipe(Path("a\0b"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(tmp_path / "binary.yaml")


def test_the_resolved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD)).recipe
    assert load_recipe(write(tmp_path, resolved_yaml(recipe))).recipe == recipe


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3),
        max_leaves=8,
    )
)
def test_no_yaml_whatever_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: object) -> None:
    base = yaml.safe_load(GOOD)
    for key in ("regions", "variants", "verify", "corpus", "name"):
        path = write(tmp_path_factory.mktemp("r"), yaml.safe_dump({**base, key: data}))
        with contextlib.suppress(RecipeError):  # anything else would reach the user as a traceback
            load_recipe(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_fits_the_schema(name: str) -> None:
    path = shipped_recipes()[name]
    recipe = load_recipe(path).recipe
    assert isinstance(recipe, Recipe)
    properties = recipe_schema()["properties"]
    assert set(yaml.safe_load(path.read_text())) <= set(properties)
    assert json.dumps(recipe_schema())
