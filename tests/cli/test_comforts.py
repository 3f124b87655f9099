"""The small things of the command line: short options, examples, colour, narrow screens, hints."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from reports import make_report
from rich.console import Console
from typer.testing import CliRunner

from surgeon import __version__
from surgeon.cli import COMMANDS, app, main
from surgeon.ending import run_to_its_end
from surgeon.errors import InputError
from surgeon.views.terminal import report_view, table

RecipeMaker = Callable[..., Path]


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_short_options_and_completion() -> None:
    assert run("-V") == run("--version") == f"surgeon {__version__}\n"
    assert run("-h") == run("--help")
    assert "--top" in run("cut", "-h")


def test_a_shell_completes_commands_and_options() -> None:
    assert "--install-completion" in run("-h")
    for words, offered in (("surgeon cu", "cut"), ("surgeon cut --lan", "--languages")):
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_SURGEON_COMPLETE": "complete_bash"}
        assert CliRunner().invoke(app, [], env=asked, prog_name="surgeon").stdout.split() == [offered]


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_sleep_while_they_wait_unless_told(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    monkeypatch.setattr(os, "environ", others | ({} if given is None else {"OMP_WAIT_POLICY": given}))
    monkeypatch.setattr(sys, "argv", ["surgeon", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == (given or "PASSIVE")


@pytest.mark.parametrize(("command", "example"), COMMANDS, ids=[command.__name__ for command, _ in COMMANDS])
def test_every_command_has_an_example_that_its_own_options_allow(command: Callable[..., None], example: str) -> None:
    words = shlex.split(example.partition(" >")[0])
    assert words[:2] == ["surgeon", command.__name__]
    shown = run(command.__name__, "--help")
    assert "Example:" in shown
    assert example[:40] in " ".join(shown.split())
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


def test_languages_are_listed_with_script_and_family() -> None:
    lines = run("languages").splitlines()
    assert any(line.split() == ["sw", "Swahili", "Latin", "Bantu"] for line in lines)
    found = json.loads(run("languages", "--json"))
    assert len(found) == 30
    assert found["no"] == {"name": "Norwegian", "script": "Latin", "family": "Germanic"}


def test_verify_takes_the_texts_that_a_recipe_takes(llama: Path, texts: dict[str, str], tmp_path: Path) -> None:
    mapping = f"{{de: {texts['de']}, 'no': {{file: {texts['fr']}}}}}"
    arguments = ["verify", llama, "--corpus", mapping, "--tokens", "32", "--window", "16"]
    assert list(json.loads(run(*arguments, "--json"))["checkpoint"]) == ["de", "no"]
    wrong = CliRunner().invoke(app, ["verify", str(llama), "--corpus", "[de]"])
    assert "--corpus [de]: write builtin:udhr30, or a mapping of languages" in str(wrong.exception)
    absent = CliRunner().invoke(app, ["verify", str(llama), "--corpus", mapping, "--languages", "sv"])
    assert "has no text for 'sv'" in str(absent.exception)


def test_inspect_shows_a_recipe_and_a_report(recipe: RecipeMaker, tmp_path: Path) -> None:
    path = recipe()
    shown = run("inspect", path)
    assert "combine" not in shown
    assert re.search(r"cut +zero core +yes", shown)
    assert re.search(r"control +zero bottom +no", shown)
    assert json.loads(run("inspect", path, "--json"))["recipe"]["regions"]["bottom"]["from"] == "core"
    report = tmp_path / "out" / "report.json"
    report.parent.mkdir()
    make_report().save(report)
    assert run("inspect", report) == run("inspect", tmp_path / "out")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    wrong = CliRunner().invoke(app, ["inspect", str(tmp_path / "other.json")])
    assert isinstance(wrong.exception, InputError)
    assert "not a report" in str(wrong.exception)


def test_a_dry_run_looks_for_the_device(
    recipe: RecipeMaker, light_recipe: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["plan"], ["apply", "--dry-run"], ["score", "--dry-run"]):
        done = CliRunner().invoke(app, [*command, str(recipe()), "--device", "cuda:99"])
        assert "--device cuda:99: not available here" in str(done.exception)
        assert "say how much memory it has: SURGEON_DEVICE_MEMORY=80G" in str(done.exception)
    assert "time    " in run("plan", light_recipe(), "--device", "cuda:99")  # runs no model
    assert "time    " in run("plan", recipe(), "--device", "auto")
    monkeypatch.setenv("SURGEON_DEVICE_MEMORY", "80G")  # of one that is elsewhere, whose speed is not known
    there = run("plan", recipe(), "--device", "cuda:99")
    assert "of memory on cuda:99 (estimate); copied: about" in there
    assert "time    " not in there


def test_the_shipped_recipe_has_nothing_to_warn_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """But if a recipe asks for more than there is, that is said."""
    from surgeon.api import plan_recipe
    from surgeon.model.tokenizer import TokenCounts, load_tokenizer
    from surgeon.plan.texts import check_supply

    made = plan_recipe("zero_core")
    tokens = TokenCounts(made.checkpoint, lambda: load_tokenizer(made.checkpoint))
    assert check_supply(made, tokens) == []
    more = plan_recipe("zero_core", overrides=["regions.core.score.samples=64"])
    (note,) = check_supply(more, tokens)
    assert "scored on fewer than 64 sequences" in note


@pytest.mark.parametrize(
    ("terminal", "no_colour", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_errors_are_red_on_a_terminal_and_plain_elsewhere(
    terminal: bool, no_colour: str, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    def fail() -> None:
        raise InputError("what", "where")

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("NO_COLOR", no_colour)
    with pytest.raises(SystemExit):
        run_to_its_end(fail)
    plain = "error: what\nerror: where\n"
    assert screen.getvalue() == (plain.replace("error:", "\033[1;31merror:\033[0m") if coloured else plain)


def test_verdicts_are_in_colour_on_a_terminal(recipe: RecipeMaker) -> None:
    from surgeon.report.entries import Expectation
    from surgeon.views.terminal import expectation_line

    bounds = {"variant": "cut", "language": None, "ratio_at_least": 2.0, "ratio_at_most": None}
    lines = {
        passed: expectation_line(Expectation(**bounds, ratio=1.0, passed=passed), make_report())
        for passed in (True, False)
    }
    styles = {passed: {str(span.style) for span in line.spans} for passed, line in lines.items()}
    assert styles == {True: {"green"}, False: {"bold red"}}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_numbers_do_not_break_on_a_narrow_screen(width: int) -> None:
    report = make_report()
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    console.print(report_view(report, "out"), highlight=False)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = set(file.getvalue().split())
    for region in report.regions.values():
        assert f"{region.entries:,}" in words
        assert f"{region.numel:,}" in words
    for variant in report.variants.values():
        assert f"{variant.entries:,}" in words


def test_a_table_too_wide_for_the_screen_says_the_same_in_lines() -> None:
    rows = table("Things", "thing", "how", "entries", "of", words=["how"])
    rows.add_row("a-long-name-of-a-thing", "in words that may wrap anywhere", "123,456,789", "1,234,567,890")
    for width, stacked in ((100, False), (70, False), (40, True)):
        file = io.StringIO()
        Console(file=file, width=width, color_system=None).print(rows)
        text = file.getvalue()
        assert any(line.startswith("  entries") for line in text.splitlines()) == stacked, text
        assert "123,456,789" in text
        assert "1,234,567,890" in text
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_a_misspelt_folder_leads_to_the_one_that_is_there(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "my-model").symlink_to(llama)
    for name in ("my-modle", "my-modle/inner"):
        done = CliRunner().invoke(app, ["inspect", str(tmp_path / name)])
        told = str(tmp_path / "my-model" / Path(name).relative_to("my-modle"))
        assert f"did you mean '{told}'?" in str(done.exception)


def test_a_misspelt_recipe_leads_to_a_shipped_one_or_to_a_file_beside(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{}")
    for name, told in (
        ("zero-core", "did you mean 'zero_core'?"),
        (str(tmp_path / "mine.yam"), f"'{tmp_path}/mine.yaml'?"),
    ):
        assert told in str(CliRunner().invoke(app, ["plan", name]).exception)
    assert "`surgeon recipes` lists" in str(CliRunner().invoke(app, ["plan", "qqqq"]).exception)


def test_the_list_of_commands_is_not_cut_off() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    commands = shown.partition("Commands:")[2].partition("Example:")[0]
    assert "..." not in commands
    assert "from headers alone; writes" in " ".join(commands.split())
