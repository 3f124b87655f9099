"""Progress of long work on stderr: a bar with an ETA on a terminal, plain lines elsewhere, nothing if asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Progress:
    """Where progress goes; `console` None means nowhere."""

    console: Console | None = None

    def note(self, text: str) -> None:
        """Say something that the user should know before the work goes on."""
        if self.console is not None:
            self.console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show one piece of work; the yielded function takes the number of units done since its last call."""
        if self.console is None:
            yield lambda count: None
        elif self.console.is_terminal:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            with Bar(*columns, console=self.console, transient=True) as bar:
                task = bar.add_task(label, total=total)
                yield lambda count: bar.advance(task, count)
        else:
            started = time.monotonic()
            yield lambda count: None
            self.console.print(f"{label}: {time.monotonic() - started:.1f} s", highlight=False)
