"""Whatever a text holds, each escaper gives it back as text to a reader of its language, and nothing else."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from surgeon.report.charts import finished
from surgeon.report.drawing import Figure, svg
from surgeon.report.markup import markdown, markdown_code, quoted, svg_id, yaml_text
from surgeon.visible import visible

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30) | st.text("<>&`*_#[]()!|\\\\-+=:.1 \n\r\t'\"{}", max_size=12)


@given(TEXTS)
@example("<script>alert(1)</script>")
@example("- x")
@example("1. x")
@example("2) x")
@example("==")
@example("~~~")
def test_markdown(text: str) -> None:
    shown = visible(text).strip()
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown(shown))
    assert [token.type for token in tokens] == (["paragraph_open", "inline", "paragraph_close"] if shown else [])
    for token in tokens:
        if token.type == "inline":
            assert {child.type for child in token.children or ()} <= {"text", "text_special"}
            assert "".join(child.content for child in token.children or ()) == shown


@given(TEXTS)
def test_markdown_code(text: str) -> None:
    shown = visible(text)
    if not shown.strip() or "|" in shown:  # in a table a bar needs a backslash, which only a table takes away
        return
    (_, inline, _) = MarkdownIt("commonmark").parse("x " + markdown_code(text))
    assert [(child.type, child.content) for child in inline.children or ()] == [("text", "x "), ("code_inline", shown)]


@given(TEXTS)
@example("true")
@example("1e3")
@example("~")
@example("a: b")
def test_yaml_and_python(text: str) -> None:
    shown = visible(text)
    assert yaml.safe_load(f"a: {{b: {yaml_text(shown)}}}") == {"a": {"b": shown}}
    assert yaml.safe_load(quoted(text)) == shown
    assert eval(quoted(text)) == shown


@given(TEXTS, TEXTS)
def test_ids(one: str, other: str) -> None:
    assert svg_id(one).isascii()
    assert not set(svg_id(one)) & set("<>\"'& ()#")
    assert (svg_id(one) == svg_id(other)) == (one == other)


@pytest.mark.parametrize("name", ['scan-"><script>alert(1)</script>', "scan-a b", "scan-a'b", "scan-&amp;", "scan-é)"])
def test_a_drawing_is_one_whatever_its_region_is_called(name: str) -> None:
    data = {"data": {"values": [{"a": 1, "b": 2}]}, "mark": {"type": "bar", "clip": True}}
    spec = finished({**data, "encoding": {"x": {"field": "a", "type": "quantitative"}}})
    drawn = svg(Figure(name, name, "", spec))
    root = ElementTree.fromstring(drawn)
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert root.get("aria-label") == name
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    assert ids
    uses = {element.get("clip-path") for element in root.iter() if element.get("clip-path")}
    assert uses <= {f"url(#{one})" for one in ids}
