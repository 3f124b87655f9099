"""Progress: what is said before and during long work, and that the time to go is believable."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from surgeon.progress import Progress, Step, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that has passed, to be set."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_whole_work_is_told_before_and_the_time_to_go_follows_the_real_speed(clock: list[float]) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    progress = Progress(console)
    with progress.steps([Step("score ", 10), Step("write cut", 2), Step("perplexity", 28)]):
        whole = progress._whole
        assert whole is not None
        assert whole.text == "step 1 of 3: score, about 40 s to go"
        with progress.task("score ar, en", 4) as advance:
            clock[0] = 10.0  # twice as slow as thought
            advance(2)
            assert (
                whole.text == "step 1 of 3: score, about 1 min to go"
            )  # 35 thought to be left, at twice the time: 70 s
            assert whole.left == pytest.approx(70)
            clock[0] = 20.0
            advance(2)
        with progress.task("perplexity of 2 models", 7) as advance:  # what was to be written was there
            assert whole.text == "step 3 of 3: perplexity, about 56 s to go"
            clock[0] = 76.0
            advance(7)
            assert whole.text == "step 3 of 3: perplexity, about 1 s to go"
    assert "3 steps (score, write, perplexity): 20 s to 1 min" in file.getvalue()
    assert progress._whole is None


def test_a_task_that_nobody_foresaw_is_shown_and_changes_nothing(clock: list[float]) -> None:
    progress = Progress(Console(file=io.StringIO(), force_terminal=True, width=100))
    with progress.steps([Step("score ", 10), Step("page", 5)]), progress.task("push it", 1) as advance:
        advance(1)
        assert progress._whole is not None
        assert progress._whole.text == "step 1 of 2: score, about 15 s to go"


def test_elsewhere_there_are_plain_lines_and_if_asked_nothing() -> None:
    file = io.StringIO()
    progress = Progress(Console(file=file, width=100))
    with progress.steps([Step("score ", 100), Step("page", 80)]), progress.task("score ar", 2) as advance:
        advance(2)
    progress.note("[red]not markup[/red]")
    lines = file.getvalue().splitlines()
    assert lines[0] == "2 steps (score, page): 2 to 6 min"
    assert lines[1].startswith("score ar: 0.")
    assert lines[2] == "note: [red]not markup[/red]"
    silent = Progress()
    with silent.steps([Step("score ", 1)]), silent.task("score ar", 2) as advance:
        advance(2)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (8.4, "8 s"), (59.6, "1 min"), (150, "2 min"), (3600, "1.0 h"), (9000, "2.5 h"), (360000, "100 h")],
)
def test_durations_are_as_rough_as_they_are_known(seconds: float, words: str) -> None:
    assert duration(seconds) == words
