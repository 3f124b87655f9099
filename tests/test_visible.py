"""Text from files on the terminal: whatever a name holds, it is shown as one line of plain text, and forges nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import with_pictures
from forking import run_forked
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from surgeon.checkpoint.plain_json import NotPlain, parse_json
from surgeon.errors import CheckpointError, InputError
from surgeon.report.card import SourceCard
from surgeon.visible import json_escaped, visible, visible_lines

CLEAR, TITLE = "\x1b[2J", "\x1b]0;owned\x07"
HOSTILE = [
    f"model.layers.0.mlp.up_proj.{CLEAR}weight",
    f"model.layers.0.mlp.{TITLE}down_proj.weight",
    "model.layers.1.x\nerror: forged\r\nerror: again",
    "model.layers.1.\u202egpj.exe",
    "model.layers.1.[link=http://x]y[/link][/]",
    "model.layers.1.\x9b31m",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints whose names are all of them, and a recipe on them."""
    folder = tmp_path_factory.mktemp("hostile")
    for label, value in (("a", 1.0), ("b", 2.0)):
        (folder / label).mkdir()
        tensors = {name: np.full((4, 4), value, np.float32) for name in HOSTILE}
        extra = {f"only.{label}\nerror: forged": np.ones(3, np.float32)}
        save_file({**tensors, **extra}, folder / label / "model.safetensors")
        config = {"model_type": f"llama{CLEAR}\nerror: forged", f"{label}{TITLE}": 1}
        (folder / label / "config.json").write_text(json.dumps(config))
    (folder / "recipe.yaml").write_text(f"""\
version: 1
name: r
model: {folder}/a
regions:
  core: {{select: {{random: 0.5, seed: 0}}}}
variants:
  cut: {{operations: [{{zero: core}}]}}
output: {folder}/out
""")
    return folder


COMMANDS = {
    "inspect": ["inspect", "{}/a"],
    "plan": ["plan", "{}/recipe.yaml"],
    "difference": ["diff", "{}/a", "{}/b", "--details"],
    "difference as data": ["diff", "{}/a", "{}/b", "--json"],
    "no such tensor": ["plan", "{}/recipe.yaml", "--set", "regions.core.include=[nothing]"],
    "run": ["apply", "{}/recipe.yaml"],
    "region": ["inspect", "{}/out/regions/core.region.safetensors"],
}


@pytest.fixture(scope="module")
def printed(hostile: Path) -> dict[str, str]:
    """What the command line prints, on stdout and stderr."""
    cases = [{"arguments": [part.format(hostile) for part in parts]} for parts in COMMANDS.values()]
    styled = {"arguments": cases[list(COMMANDS).index("difference")]["arguments"], "environment": {"FORCE_COLOR": "1"}}
    cache = str(with_pictures(hostile / "cache"))
    done = run_forked([*cases, styled], SURGEON_CACHE=cache, HF_HUB_OFFLINE="1", COLUMNS="200", TERM="xterm")
    assert {item["code"] for item in done} <= {0, 2}, done
    return dict(zip([*COMMANDS, "styled"], (item["said"] for item in done), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_no_name_reaches_the_terminal_as_more_than_text(name: str, printed: dict[str, str]) -> None:
    said = printed[name]
    assert visible_lines(said) == said
    assert not [line for line in said.splitlines() if line.lstrip().startswith("error: ") and "forged" in line[:16]]
    if name.endswith("data"):
        assert json.loads(said)
    if name == "difference as data":
        assert "\x9b" in json.dumps(json.loads(said), ensure_ascii=False)  # nothing is lost on those who read the data
    if name == "difference":
        assert "[link=http://x]" in said


@pytest.mark.slow
def test_on_a_terminal_only_our_own_styles_are_escapes(printed: dict[str, str]) -> None:
    said = printed["styled"]
    assert "\x1b[1m" in said  # it was styled
    assert not {CLEAR, "\x1b]", "\u202e"} & {part for part in (CLEAR, "\x1b]", "\u202e") if part in said}


@given(st.text())
def test_visible_text_is_one_line_without_controls(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable() or not shown.replace("\u200c", "").replace("\u200d", "").isascii()
    assert len(shown.splitlines()) <= 1
    assert visible(shown) == shown
    shown.encode()


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_escaped_json_stands_for_the_same(data: object) -> None:
    text = json.dumps(data, ensure_ascii=False)
    assert json.loads(json_escaped(text)) == data
    assert visible(json_escaped(text)) == json_escaped(text)


def test_an_error_is_a_line_for_each_of_its_messages() -> None:
    assert CheckpointError("a\nerror: b").said == ("a\nerror: b",)
    error = InputError("one", "two")
    assert error.said == ("one", "two")
    assert str(error) == "one\ntwo"


LINKS = ("LICENSE", "docs/LICENSE.md", "https://example.org/a?b=c#d", "http://example.org")
NO_LINKS = (
    "javascript:alert(1)", "data:text/html,x", "JaVaScRiPt:x", "//example.org", "file:///etc/passwd", "/etc/passwd",
    "https://x/\u202e", 'https://x/"onload=1', "https://x/<script>",
)  # fmt: skip


@pytest.mark.parametrize("link", LINKS + NO_LINKS)
def test_a_card_takes_over_no_link_but_an_address_or_a_file(link: str) -> None:
    card = SourceCard.parse(f"---\nlicense: other\nlicense_link: {json.dumps(link)}\n---\n")
    assert ("license_link" in card.fields) is (link in LINKS)


def test_json_within_limits() -> None:
    assert parse_json(b'{"a": [1, "\\ud83d\\ude00"]}') == {"a": [1, "\U0001f600"]}
    assert parse_json(b'{"a": 1, "a": 2}', unique=False) == {"a": 2}
    assert parse_json(b"[" * 100 + b"]" * 100)
    refused = {
        b"": "not JSON", b"\xff": "not JSON", b"[" * 60_000: "nested", b"[" * 101 + b"]" * 101: "nested",
        b'{"a": 1, "a": 2}': "names 'a' twice", b'{"\\ud800": 1}': "half a character",
        b'["\\udc00"]': "half a character",
        b"[" + b"[]," * 1_000_000 + b"0]": "more than 1,000,000 lists", b'"' + b"x" * (1 << 25) + b'"': "longer than",
        b"1" * 5000: "not JSON",
    }  # fmt: skip
    for text, why in refused.items():
        with pytest.raises(NotPlain, match=why):
            parse_json(text)
