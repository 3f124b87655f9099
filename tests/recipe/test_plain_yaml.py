"""The door for YAML: plain data with its lines, and one clear error for everything else, however hostile."""

from __future__ import annotations

import contextlib
import itertools
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgeon.errors import InputError, RecipeError
from surgeon.recipe import plain_yaml
from surgeon.recipe.plain_yaml import DEEPEST, LONGEST, MOST_NODES, KeyPath, Node, NotYaml, along, plain, read_yaml
from surgeon.recipe.reading import load_recipe
from surgeon.recipe.schema import resolved_yaml

GOOD = """\
version: 1
name: r
model: builtin:tiny30
corpus: {ar: a.txt, 'no': {file: b.jsonl, field: text}}
regions:
  core:
    score: {kind: grad_param, languages: [ar, es]}
    select: {top: 0.01}
  rest: {from: core, select: {bottom: 0.01}, exclude: [norm]}
  both: {combine: core | ~rest}
  fullest: {dimensions: {of: both, rows: 1}}
variants:
  cut:
    operations: [{zero: core}, {scale: both, by: 2}]
    sweep:
      share: {set: regions.core.select.top, to: [0.001, 0.03]}
      by: {set: [operations.1.by], to: [0, 4]}
  kept: {freeze: fullest}
verify:
  languages: all
  expect: [{variant: cut-0.03-4, ratio_at_least: 2}]
output: out/r
"""


@pytest.fixture(params=["fast", "slow"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both of PyYAML's parsers: an installation may lack the one in C."""
    if request.param == "slow":
        monkeypatch.setattr(plain_yaml, "_PARSER", yaml.SafeLoader)
    return str(request.param)


def place(line: int) -> str:
    return f"f:{line}"


def read(text: str) -> Any:
    node, problems = read_yaml(text, place)
    assert problems == []
    return plain(node)


def objections(text: str) -> list[str]:
    """What is noted, or else what stops the reading."""
    try:
        return [str(problem) for problem in read_yaml(text, place)[1]]
    except RecipeError as error:
        return [str(problem) for problem in error.problems]


# A next-line character that PyYAML writes is a line break where it reads it again.
letters = st.characters(exclude_categories=["Cs"], exclude_characters="\x85")
scalars = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text(letters, max_size=8)
scalars |= st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["no", "1e-2", "2020-01-01", "010", "<<"])
keys = st.text(letters, max_size=5)
trees = st.recursive(scalars, lambda c: st.lists(c, max_size=3) | st.dictionaries(keys, c, max_size=3))


def every_place(node: yaml.Node, key: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """The places of a document and their lines, as PyYAML's own tree has them."""
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            yield (*key, i), child.start_mark.line + 1
            yield from every_place(child, (*key, i))
    elif isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            yield (*key, name.value), name.start_mark.line + 1
            yield from every_place(child, (*key, name.value))


@given(trees, st.booleans())
def test_what_is_written_as_plain_data_is_read_as_it_was(data: object, flow: bool) -> None:
    text = yaml.safe_dump(data, allow_unicode=True, default_flow_style=flow)
    assert read(text) == data
    node = read_yaml(text, place)[0]
    for key, line in every_place(yaml.compose(text, Loader=yaml.SafeLoader)):
        assert along(node, key)[-1].where == place(line)


WORDS = {
    "a date": ("2020-13-45", "2020-13-45"),
    "a time": ("12:30", "12:30"),
    "a power": ("1e-2", "1e-2"),
    "an equals sign": ("=", "="),
    "hexadecimal": ("0x1F", 31),
    "binary": ("-0b101", -5),
    "grouped": ("1_000", 1000),
    "a float": ("1.5e-3", 0.0015),
    "nothing": ("", None),
    "null": ("~", None),
    "true": ("True", True),
    "in quotes": ('"true"', "true"),
    "a very long number": ("1" * 2000, "1" * 2000),
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_read(word: str, parser: str) -> None:
    text, value = WORDS[word]
    assert read(f"- {text}") == [value]
    assert type(read(f"- {text}")[0]) is type(value)


BAD = {
    "a bare no": ("no", "f:2: YAML reads the bare word `no` as false; write 'no' in quotes"),
    "a bare no as a key": ("{no: x}", "f:2: YAML reads the bare word `no` as false"),
    "a tag": ("!!int foo", "f:2: tags such as !!int are not read"),
    "an object": ("!!python/object/apply:os.system [ls]", "f:2: tags such as !!python/object/apply:os.system are not"),
    "bytes": ("!!binary aGk=", "f:2: tags such as !!binary are not read"),
    "a tag of one's own": ("!thing x", "f:2: tags such as !thing are not read"),
    "a tag before a list": ("!!set {a, b}", "f:2: tags such as !!set are not read"),
    "a merge key": ("{<<: {b: 1}}", "f:2: merge keys (`<<`) are not read; write the keys themselves"),
    "no number": (".nan", "f:2: .nan is not a finite number"),
    "infinity": ("-.Inf", "f:2: -.Inf is not a finite number"),
    "more than a float": ("1.0e+999", "f:2: 1.0e+999 is not a finite number"),
    "octal": ("010", "f:2: 010 is octal to some readers of YAML"),
    "many digits": ("9" * 900, "is too large: whole numbers lie within 64 bits"),
    "64 bits": (str(2**63), "f:2: 9223372036854775808 is too large"),
    "a key twice": ("{a: 1, a: 2}", "f:2: the key 'a' is given twice"),
    "a list as a key": ("{[a]: 1}", "f:2: a key must be plain text"),
    "half a character": ('"\\ud800"', "f:2: "),
    "half a character as a key": ('{"\\udfff": 1}', "f:2: "),
    "a code beyond Unicode": ('"\\UFFFFFFFF"', "not YAML"),
    "a control character": ("\x1b[31m", "f:2: the character U+001B may not stand in YAML; inside double quotes write"),
    "half a character, raw": ("\udcff", "f:2: the character U+DCFF may not stand in YAML"),
    "an alias of nothing": ("*b", "f:2: not YAML: '*b' repeats '&b', which is not there"),
    "a circle": ("&b [*b]", "f:2: '*b' stands inside of what it repeats, '&b'"),
    "a circle through keys": ("&b {x: {y: *b}}", "f:2: '*b' stands inside of what it repeats, '&b'"),
    "an open list": ("[1", "not YAML: "),
    "a tab": ("\t- x", "not YAML: "),
    "a second document": ("b\n--- c", "f:3: not YAML: a second document begins here"),
    "lists": ("[" * 60_000, f"f:2: lists and mappings are nested more than {DEEPEST} deep"),
    "mappings": ("{a: " * 60_000, f"f:2: lists and mappings are nested more than {DEEPEST} deep"),
    "keys": ("{? " * 60_000, f"f:2: lists and mappings are nested more than {DEEPEST} deep"),
    "rows of lists": ("\n" + "".join(" " * i + "-\n" for i in range(200)), "nested more than"),
    "many values": ("[" + "1," * MOST_NODES + "]", f"f:2: more than {MOST_NODES:,} values"),
    "length": ("x" * LONGEST, f"f:1: longer than {LONGEST:,} bytes"),
    "length in bytes": ("é" * (LONGEST // 2), f"f:1: longer than {LONGEST:,} bytes"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_plain_data_is_said(what: str, parser: str) -> None:
    text, message = BAD[what]
    found = objections(f"---\na: {text}\n")
    assert any(message in line for line in found), found


def test_traps_leave_the_rest_to_read() -> None:
    node, problems = read_yaml("a: {<<: {b: 1}, c: [no, !!int foo, .nan]}\nd: 1", place)
    assert len(problems) == 4
    assert plain(node)["d"] == 1
    assert plain(node)["a"]["c"] == ["no", "foo", ".nan"]


def laughs(nested: str) -> str:
    names = "abcdefghijklmnopqrst"
    rows = [f"{name}: &{name} " + nested.replace("*", f"*{before}") for before, name in itertools.pairwise(names)]
    return "\n".join(["a: &a [ha, ha]", *rows, ""])


BOMBS = {
    "of lists": laughs("[*, *, *, *, *, *, *, *, *]"),
    "of mappings": laughs("{u: *, v: *, w: *, x: *}"),
    "of merge keys": laughs("{<<: [*, *, *, *, *, *]}"),
    "of text": "a: &a " + "x" * 500_000 + "\nb: [" + "*a, " * 50_000 + "]\n",
    "of depth": "[" * 1_000_000,
    "of tags": "[" + "!!int foo, " * 20_000 + "]",
    "of traps": "[" + "no, " * 20_000 + "]",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_takes_little_memory(bomb: str) -> None:
    """A billion laughs would be a billion values; what may be read at most is some tens of megabytes."""
    tracemalloc.start()
    try:
        with contextlib.suppress(RecipeError):
            read_yaml(BOMBS[bomb], place)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_values_that_aliases_repeat_are_counted_at_the_limit() -> None:
    """What is read has at most so many values when it is written out: 1 + keys + lists + values."""
    times = (MOST_NODES - 6) // 4
    for extra, fits in ((0, True), (1, False)):
        text = "a: &a [x, y, z]\nb: [" + "*a, " * (times + extra) + "]\n"
        if fits:
            assert read(text)["b"] == [["x", "y", "z"]] * times
        else:
            with pytest.raises(RecipeError, match="aliases repeat"):
                read(text)


def test_syntax_errors_are_told_from_limits() -> None:
    """A value of --set that is no YAML is taken as text, but not one that is beyond the limits."""
    with pytest.raises(NotYaml):
        read("*.weight")
    with pytest.raises(RecipeError) as caught:
        read("[" * 100)
    assert not isinstance(caught.value, NotYaml)


# Text, not dumped data: pieces of recipes and of YAML's syntax in any order, and a good recipe with some of it broken.
SYNTAX = [
    *"[]{},:-?&*!|>'\"%@`#~=<\n\t \\\r",
    "---",
    "...",
    "<<: ",
    ": ",
    "- ",
    "? ",
    "&a ",
    "*a",
    "!!int ",
    "\n  ",
    "\n    ",
]
STRANGE = [
    "\x00",
    "\x1b",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ud800",
    "²",
    "٣",
    "é",
    "🙂",
    '"\\ud800"',
    "0x",
    "1_",
    "._",
    "9" * 400,
]
PIECES = [
    *GOOD.split(),
    "2020-13-45",
    "010",
    ".nan",
    "1e400",
    "no",
    "[[[[",
    "(((",
    "core-0.03",
    "regions.core",
    "null",
    "1",
]
pieces = st.sampled_from(SYNTAX) | st.sampled_from(STRANGE) | st.sampled_from(PIECES) | st.text(max_size=3)


@st.composite
def broken(draw: st.DrawFn) -> str:
    text = GOOD
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.sampled_from([0, 0, 1, 3, 10, 60]))
        text = text[:start] + draw(pieces) + text[end:]
    return text


def loaded(folder: Path, content: bytes, overrides: list[str]) -> None:
    """Load a recipe; only our own errors are allowed, and what is valid can be written and loaded again."""
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    file = None
    with contextlib.suppress(InputError):  # anything else would reach the user as a traceback
        file = load_recipe(path, overrides)
    if file is not None:
        path.write_text(resolved_yaml(file.as_written), encoding="utf-8")
        again = load_recipe(path)
        assert (again.recipe, again.as_written, again.sweeps) == (file.recipe, file.as_written, file.sweeps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@settings(max_examples=200)
@given(broken() | st.lists(pieces, max_size=30).map("".join) | st.lists(pieces, max_size=8).map(" ".join))
@example(GOOD)
@example(GOOD.replace("0.03]", "core]"))
@example(GOOD.replace("regions:\n", "regions:\n  2020-01-01: {combine: core}\n"))
def test_no_text_whatever_ends_in_a_traceback(folder: Path, text: str) -> None:
    loaded(folder, text.encode("utf-8", errors="surrogatepass"), [])


@given(st.binary(max_size=60))
def test_no_bytes_whatever_end_in_a_traceback(folder: Path, content: bytes) -> None:
    loaded(folder, content, [])


KEYS = [
    "regions",
    "core",
    "kore",
    "corpus",
    "verify",
    "cut",
    "variants",
    "operations",
    "sweep",
    "0",
    "²",
    "٣",
    "9" * 5000,
    "",
]


@given(
    st.lists(st.sampled_from(KEYS) | st.text(max_size=3), max_size=6).map(".".join),
    st.lists(pieces, max_size=6).map("".join),
)
@example("corpus.²", "x")
@example(".".join(["a"] * 60_000), "x")
@example("name", "[" * 60_000)
@example("corpus", "a: &a [*a]")
@example("corpus", "2020-13-45")
@example("corpus.ar", "!!int foo")
def test_no_override_whatever_ends_in_a_traceback(folder: Path, path: str, value: str) -> None:
    loaded(folder, GOOD.encode(), [f"{path}={value}"])


def test_a_mapping_gives_no_place_to_a_number() -> None:
    node = Node({"1": Node(math.pi, place(1))}, place(1))
    assert node.child(1) is None
    assert node.child("1") == Node(math.pi, place(2))  # places are not compared
