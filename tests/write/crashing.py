"""Runs `surgeon apply` many times, killed or failing at one call after another; prints what went wrong as JSON.

    LD_PRELOAD=shim.so python crashing.py RECIPE WORK KILLED FAILING [WORK KILLED FAILING ...]

Each run happens in a fork of this process, which has everything imported, in fresh copies of the folder WORK/before
(the output, and the cache beside it); it is followed by the same command undisturbed, whose output is compared.
What the page's pictures look like is computed once, before all runs: it would be most of a run, and writes nothing.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vl_convert

import surgeon.api
import surgeon.cli
import surgeon.hub.rebuild
import surgeon.views.terminal

SHIM = ctypes.CDLL(None)
KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_FROM = range(4)
KINDS = WRITE, FSYNC, RENAME, COPY, OPEN, REMOVE, MKDIR, SIZE = [1 << i for i in range(8)]
CHANGING = sum(KINDS)


@dataclass(frozen=True)
class Scene:
    """Where a command is run, with how many runs of each scenario."""

    work: Path
    runs: dict[str, int]

    @property
    def state(self) -> Path:
        return self.work / "state"

    @property
    def log(self) -> Path:
        return self.work / "log"

    def reset(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)
        if (self.work / "before").exists():
            shutil.copytree(self.work / "before", self.state, symlinks=True)
        self.state.mkdir(exist_ok=True)


def remembering(draw: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[str, Any] = {}

    def drawn(*arguments: Any, **settings: Any) -> Any:
        key = repr((arguments, settings))
        if key not in known:
            known[key] = draw(*arguments, **settings)
        return known[key]

    return drawn


for name in ("vegalite_to_svg", "svg_to_png", "javascript_bundle"):
    setattr(vl_convert, name, remembering(getattr(vl_convert, name)))


def draw_once(command: list[str]) -> None:
    """Run the command in this process, so that its forks find the pictures drawn."""
    sys.argv = ["surgeon", "apply", *command]
    try:
        surgeon.cli.main()
    except SystemExit as ended:
        if ended.code:
            raise


def apply(arguments: list[str], log: Path | None, arm: tuple[int, int, int, int] | None = None) -> int:
    """Run the command in a fork; returns its exit code, negative for a signal."""
    child = os.fork()
    if not child:
        if log is not None:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        sys.argv = ["surgeon", "apply", *arguments]
        code: Any = 99
        try:
            if arm is not None:
                SHIM.shim_arm(ctypes.c_long(arm[0]), *arm[1:])
            surgeon.cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            print("calls:", *(SHIM.shim_count(bit) for bit in range(len(KINDS))))
            SHIM.shim_arm(ctypes.c_long(-1), 0, 0, 0)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tree(folder: Path) -> dict[str, bytes]:
    """Everything that a run leaves, but for how long it took and whether it found something finished."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    result = {name: path.read_bytes() for name, path in found.items() if name != "report.html"}
    for name in ("report.json", "manifest.json"):
        if name in result:
            data = json.loads(result[name])
            data.pop("timings" if name == "report.json" else "report")
            for variant in data.get("variants", {}).values():
                variant.pop("reused")
            result[name] = json.dumps(data).encode()
    return result


def half_done(out: Path, whole: list[dict[str, bytes]]) -> Iterator[str]:
    """Say which final names hold something that no finished run would leave there."""
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if hidden or not path.is_file() or name == "report.html":
            continue
        if name in ("report.json", "manifest.json"):
            json.loads(path.read_bytes())
        elif path.read_bytes() not in [state[name] for state in whole if name in state]:
            yield f"{name} is half done"
    for variant in (out / "variants").glob("[!.]*"):
        files = {str(path.relative_to(out)) for path in variant.rglob("*") if path.is_file()}
        wanted = [{name for name in state if name.startswith(f"variants/{variant.name}/")} for state in whole]
        if variant.is_dir() and files not in wanted:
            yield f"{variant.name} lacks files or has too many: {sorted(files)}"


# (how, error, kinds) of each run, in turn.
WAYS = {
    "kill": [(KILL_BEFORE, 0, CHANGING), (KILL_AFTER, 0, CHANGING)],
    "fail": [
        (FAIL_FROM, errno.ENOSPC, WRITE | COPY | SIZE), (FAIL_ONCE, errno.EIO, FSYNC), (FAIL_ONCE, errno.EIO, RENAME),
        (FAIL_ONCE, errno.EIO, COPY), (FAIL_FROM, errno.ENOSPC, OPEN | MKDIR), (FAIL_ONCE, errno.EIO, WRITE),
        (FAIL_FROM, errno.EFBIG, WRITE | COPY), (FAIL_FROM, errno.EDQUOT, WRITE | COPY | OPEN),
        (FAIL_ONCE, errno.EXDEV, COPY), (FAIL_ONCE, errno.EACCES, REMOVE),
    ],
}  # fmt: skip


def disturbed(
    scene: Scene, command: list[str], scenario: str, calls: dict[int, int], states: list[dict[str, bytes]]
) -> dict[str, Any]:
    """Strike one run after the other, evenly over all its calls, and run the same command again after each."""
    out, log, ways, runs = scene.state / "out", scene.log, WAYS[scenario], scene.runs[scenario]
    problems, codes = [], Counter[int]()
    rounds = -(-runs // len(ways))
    started = time.monotonic()
    for run in sorted(range(runs), key=lambda run: run * 7919 % runs):  # cut short, it has been everywhere
        if time.monotonic() - started > float(os.environ.get("SURGEON_CRASH_SECONDS", "inf")):
            break
        how, code, kinds = ways[run % len(ways)]
        total = sum(count for kind, count in calls.items() if kind & kinds)
        at = 1 + (run // len(ways)) * max(total, 1) // rounds
        where = f"how {how}, error {code}, kinds {kinds}, call {at} of {total}"
        scene.reset()
        ended = apply(command, log, (at, how, code, kinds))
        said = log.read_text(errors="replace")
        codes[ended] += 1
        if ended not in (0, 2, 3, -signal.SIGKILL):
            problems.append(f"{where}: exit code {ended}: {said[-1500:]}")
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        if ended in (2, 3) and (len(errors) != 1 or "Traceback" in said):
            problems.append(f"{where}: not one message: {said[-1500:]}")
        if ended == 3 and errors and str(scene.state) not in errors[0]:
            problems.append(f"{where}: names no file: {errors[0]}")
        if out.exists():
            problems += [f"{where}: {problem}" for problem in half_done(out, states)]
        again = apply(command, log)
        if again != 0:
            problems.append(f"{where}: the same command again: {again}: {log.read_text()[-1500:]}")
        elif (now := tree(out)) != (whole := states[-1]):
            differ = sorted(name for name in {*now, *whole} if now.get(name) != whole.get(name))
            problems.append(f"{where}: came out otherwise: {differ}")
        left = [*scene.state.rglob(".*.part*"), *(scene.state / "cache" / "scratch").glob("*")]
        if left:
            problems.append(f"{where}: left behind: {[str(path.relative_to(scene.state)) for path in left]}")
    return {"codes": codes, "seconds": round(time.monotonic() - started, 1), "problems": problems}


def played(scene: Scene, recipe: str) -> dict[str, Any]:
    os.environ["SURGEON_CACHE"] = str(scene.state / "cache")
    out = scene.state / "out"
    command = [recipe, "--output", str(out), "--jobs", "1"]
    scene.reset()
    draw_once(command)
    scene.reset()
    first = tree(out) if out.exists() else {}
    # The calls that can be struck are counted in a run that nothing disturbs.
    assert apply(command, scene.log, (1 << 40, FAIL_ONCE, 0, CHANGING)) == 0, scene.log.read_text()
    counted = scene.log.read_text().rpartition("calls: ")[2].split()
    calls = dict(zip(KINDS, map(int, counted), strict=True))
    states = [first, tree(out)]
    return {scenario: disturbed(scene, command, scenario, calls, states) for scenario in WAYS}


def main() -> None:
    recipe, *rest = sys.argv[1:]
    scenes = [
        Scene(Path(work), {"kill": int(killed), "fail": int(failing)})
        for work, killed, failing in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    ]
    print(json.dumps([played(scene, recipe) for scene in scenes]))


if __name__ == "__main__":
    main()
