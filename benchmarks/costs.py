"""What a command costs in a process of its own: wall and processor time, page faults, memory; and tables of ratios.

Machines are shared and clocks change, so commands that are compared run in turn, round by round, each in a fresh
process, and ratios are those of processor seconds (user and system) beside those of wall seconds.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Seconds of wall and of processor time, page faults, the highest anonymous memory in bytes; what was printed."""

    wall: float
    processor: float
    faults: int
    peak: int
    said: str


def cost(command: Sequence[str], environment: Mapping[str, str] | None = None, every: float = 0.02) -> Cost:
    """Run a command to its end, looking at its memory `every` so many seconds; SystemExit if it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        command, env=None if environment is None else dict(environment),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        peak = max(peak, _anonymous(status))
        time.sleep(every)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed with {process.returncode}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, used, after.ru_minflt - before.ru_minflt, peak, process.stdout.read())


def _anonymous(status: Path) -> int:
    try:
        found = re.search(r"RssAnon:\s+(\d+)", status.read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def in_turn(
    commands: Mapping[str, Sequence[str]], rounds: int, environment: Mapping[str, str] | None = None
) -> dict[str, list[Cost]]:
    """Run all commands so many times, in turn."""
    found: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            found[name].append(cost(command, environment))
    return found


def table(found: Mapping[str, Sequence[Cost]], reference: str) -> str:
    """Return a line per command: medians, and the median and range of its ratios to the reference, round by round."""
    lines = [f"{'':12} {'wall s':>8} {'cpu s':>8} {'cpu ratio':>20} {'wall ratio':>20} {'faults':>10} {'peak MB':>8}"]
    for name, costs in found.items():
        pairs = list(zip(costs, found[reference], strict=True))
        processor = [mine.processor / other.processor for mine, other in pairs]
        wall = [mine.wall / other.wall for mine, other in pairs]
        lines.append(
            f"{name:12} {statistics.median(c.wall for c in costs):8.2f} "
            f"{statistics.median(c.processor for c in costs):8.2f} {spread(processor):>20} {spread(wall):>20} "
            f"{statistics.median(c.faults for c in costs):10.0f} {max(c.peak for c in costs) / 1e6:8.0f}"
        )
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return the median of some numbers, and the smallest and largest of them."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def one_thread() -> dict[str, str]:
    """Return an environment in which nothing runs on more than one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def where(*packages: str) -> str:
    """Return a line: the date, the machine, how busy it is, and versions."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    load = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    return f"{date.today()}, {load}; Python {platform.python_version()}, {versions}"
