"""How right the time to go is: what a run says is left, beside what it then takes.

    python benchmarks/to_go.py RECIPE [--set PATH=VALUE ...]

Applies a recipe to an output of its own with an empty cache, notes at every advance what the overall bar says, and
prints told and taken at the start, after the first unit of each step, and at every tenth of the run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from rich.console import Console

from surgeon.progress import Progress


@dataclass
class Noted(Progress):
    """Notes (when, step, share of the step, seconds told to be left)."""

    notes: list[tuple[float, str, float, float]] = field(default_factory=list)

    def _show_whole(self, share: float) -> None:
        super()._show_whole(share)
        if self._whole is not None:
            label = self._whole.steps[max(self._whole.at, 0)].label
            self.notes.append((time.monotonic(), label, share, self._whole.left))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    import surgeon

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SURGEON_CACHE"] = str(Path(folder) / "cache")
        noted = Noted(Console(file=StringIO(), force_terminal=True))
        surgeon.apply(arguments.recipe, output=Path(folder) / "out", overrides=arguments.set, progress=noted)
        end = time.monotonic()
    whole = end - noted.notes[0][0]
    print(f"{'after':>8}  {'told':>8}  {'taken':>8}  {'ratio':>6}  step")
    tenth, begun = 0, set()
    for when, label, share, left in noted.notes:
        spent, taken = when - noted.notes[0][0], end - when
        first = label not in begun and share > 0
        if first or spent >= whole * tenth / 10:
            print(
                f"{spent:7.1f}s  {left:7.1f}s  {taken:7.1f}s  {left / max(taken, 0.01):6.2f}  {label}, {share:.0%} done"
            )
            tenth = int(10 * spent / whole) + 1
        begun |= {label} if share > 0 else set()


if __name__ == "__main__":
    main()
