"""Runs the command line many times in forks of one process, which has imported what they need: a second each, not six.

    python forking.py [MODULE ...] < CASES > RESULTS

Each case is JSON: `arguments` of the command; `environment` that it has; and `strike`, if something happens meanwhile:
when `owner.name` is called for the `nth` time, before or after that call, the file `path` becomes `shorter`, `other` or
`gone`. With `memory`, so many MB can be had beyond what the forked process has, by the limit `of`.
Each result has the exit code, negative for a signal, and what was printed.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Case = dict[str, Any]


def run_forked(cases: Sequence[Case], *modules: str, **environment: str) -> list[dict[str, Any]]:
    """Run cases one after the other, in forks of a process that has imported some more modules; called by tests."""
    done = subprocess.run(
        [sys.executable, __file__, *modules], input=json.dumps(list(cases)), capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def change(path: str, how: str) -> None:
    if how == "shorter":
        os.truncate(path, 4096)
    elif how == "gone":
        os.remove(path)
    else:
        with open(path, "r+b") as file:
            file.seek(-400, os.SEEK_END)
            file.write(b"\x3f" * 64)


def arm(owner: str, name: str, nth: int, after: bool, path: str, how: str) -> None:
    place = importlib.import_module(owner)
    *inner, last = name.split(".")
    for part in inner:
        place = getattr(place, part)
    real, calls = getattr(place, last), [0]

    def struck(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth and not after:
            change(path, how)
        found = real(*arguments, **options)
        if calls[0] == nth and after:
            change(path, how)
        return found

    setattr(place, last, struck)


def run(case: Case, log: Path) -> dict[str, Any]:
    child = os.fork()
    if not child:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code: Any = 99
        try:
            os.environ.update(case.get("environment", {}))
            if "memory" in case:
                name = {"RLIMIT_AS": "VmSize:", "RLIMIT_DATA": "VmData:"}[case["of"]]
                said = Path("/proc/self/status").read_text().split()
                most = (int(said[said.index(name) + 1]) << 10) + (case["memory"] << 20)
                resource.setrlimit(getattr(resource, case["of"]), (most, most))
            if "strike" in case:
                arm(**case["strike"])
            sys.argv = ["surgeon", *case["arguments"]]
            from surgeon.cli import main

            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "said": log.read_text(encoding="utf-8", errors="surrogateescape")}


def main() -> None:
    for module in ("surgeon.api", "surgeon.cli", "surgeon.diff.comparison", *sys.argv[1:]):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        json.dump([run(case, Path(folder) / "log") for case in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
