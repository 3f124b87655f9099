"""Progress of long work on stderr: bars with an ETA on a terminal, plain lines elsewhere, nothing if asked.

Work of several steps says beforehand which they are and how long each may take; then one bar for all of it stands above
the bar of the step at hand, and what is left is told by how fast the steps so far really went.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surgeon.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

_LEAST, _MOST = 0.5, 2.0  # times an estimate: what runs took, on machines with nothing else to do and with much
_BELIEVED = 0.02  # of the whole: before so much is done, the estimate is better than the speed so far


@dataclass(frozen=True)
class Step:
    """A piece of work to come: `label` is how its task's label begins, `seconds` what it is thought to take."""

    label: str
    seconds: float


@dataclass
class _Whole:
    """All steps of a piece of work, and how far it came. Steps that are passed over count as done, but took no time."""

    steps: Sequence[Step]
    started: float = field(default_factory=lambda: time.monotonic())
    at: int = -1
    share: float = 0.0
    worked: float = 0.0  # estimated seconds of the steps that were really done

    def begin(self, label: str) -> None:
        """Go on to the step that a task belongs to; a task that nobody foresaw belongs to the step at hand."""
        self._close()
        self.at = next(
            (i for i in range(self.at + 1, len(self.steps)) if label.startswith(self.steps[i].label)), self.at
        )

    def _close(self) -> None:
        if self.at >= 0 and self.share > 0:
            self.worked += self.steps[self.at].seconds * min(self.share, 1.0)
        self.share = 0.0

    @property
    def left(self) -> float:
        """Seconds to go, by the estimates and by how they held so far."""
        here = self.steps[self.at].seconds if self.at >= 0 else 0.0
        worked = self.worked + here * self.share
        rest = here * (1 - self.share) + sum(step.seconds for step in self.steps[self.at + 1 :])
        believed = worked > _BELIEVED * (worked + rest)
        return rest * (time.monotonic() - self.started) / worked if believed else rest

    @property
    def text(self) -> str:
        """Such as "step 7 of 14: perplexity, about 3 min to go"."""
        at = max(self.at, 0)
        return f"step {at + 1} of {len(self.steps)}: {self.steps[at].label.strip()}, about {duration(self.left)} to go"


def extent(seconds: float) -> str:
    """Say how long something may take, from the least to the most that estimates turned out to be wrong by."""
    low, high = duration(seconds * _LEAST), duration(seconds * _MOST)
    if low == high:
        return f"about {low}"
    return f"{low.removesuffix(high[high.index(' ') :])} to {high}"


def duration(seconds: float) -> str:
    """Say how long something takes, as roughly as it is known."""
    if seconds < 1:
        return "1 s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 35_000 else f"{seconds / 3600:,.0f} h"


@dataclass
class Progress:
    """Where progress goes; `console` None means nowhere."""

    console: Console | None = None
    _whole: _Whole | None = field(default=None, repr=False)
    _bars: Any = field(default=None, repr=False)
    _overall: Any = field(default=None, repr=False)

    def note(self, text: str) -> None:
        """Say something that the user should know before the work goes on."""
        if self.console is not None:
            from rich.text import Text

            self.console.print(Text.assemble(("note:", "yellow"), f" {visible(text)}"), highlight=False, soft_wrap=True)

    def found(self, text: str) -> None:
        """Say what came out so far, while the work goes on."""
        if self.console is not None:
            from rich.text import Text

            self.console.print(Text.assemble(("found:", "green"), f" {visible(text)}"), highlight=False, soft_wrap=True)

    @contextmanager
    def steps(self, steps: Sequence[Step]) -> Iterator[None]:
        """Show a bar over all that is done inside, which is in these steps; says beforehand how long it may take."""
        if self.console is None or not steps:
            yield
            return
        self._whole = _Whole(steps)
        whole = sum(step.seconds for step in steps)
        names = ", ".join(dict.fromkeys(step.label.split()[0] for step in steps))
        self.console.print(f"{len(steps)} steps ({names}): {extent(whole)}", highlight=False, markup=False)
        try:
            if self.console.is_terminal:
                with self._shown() as bars:
                    self._bars = bars
                    self._overall = bars.add_task(self._whole.text, total=whole)
                    yield
            else:
                yield
        finally:
            self._whole = self._bars = None

    @contextmanager
    def task(self, label: str, total: int, least: float = 0.0) -> Iterator[Callable[[int], None]]:
        """Show one piece of work; the yielded function takes the number of units done since its last call.

        Where there is no terminal, a line says how long it took, if it took `least` seconds.
        """
        if self._whole is not None:
            self._whole.begin(label)
        if self.console is None:
            yield lambda count: None
        elif self._bars is not None:
            with self._step(self._bars, label, total) as advance:
                yield advance
        elif self.console.is_terminal:
            with self._shown() as bars, self._step(bars, label, total) as advance:
                yield advance
        else:
            started = time.monotonic()
            yield lambda count: None
            taken = time.monotonic() - started
            if taken >= least:
                self.console.print(f"{label}: {taken:.1f} s", highlight=False, markup=False)

    def _shown(self) -> Any:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description:<28}", markup=False), BarColumn(), TimeElapsedColumn())
        return Bars(*columns, console=self.console, transient=True)

    @contextmanager
    def _step(self, bars: Any, label: str, total: int) -> Iterator[Callable[[int], None]]:
        task, done = bars.add_task(label, total=total), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bars.advance(task, count)
            self._show_whole(done / total if total else 1.0)

        self._show_whole(0.0)
        try:
            yield advance
        finally:
            bars.remove_task(task)
        self._show_whole(1.0)

    def _show_whole(self, share: float) -> None:
        whole = self._whole
        if whole is not None and self._bars is not None:
            whole.share = share
            left = whole.left
            spent = time.monotonic() - whole.started
            self._bars.update(self._overall, description=whole.text, completed=spent, total=spent + left)
