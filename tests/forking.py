"""Runs the command line in forks of one process, which has imported what a run needs: a second each, not six.

The process is started once, when the first test asks, and ends with the tests. As a script it reads a line of JSON with
a list of cases, and answers with a line of results. Each case has the `arguments` of the command; the `environment` and
the `folder` that it has; and `strike`, if something happens meanwhile: when `owner.name` is called for the `nth` time,
before or after that call, the file `path` becomes `shorter`, `other` or `gone`. With `memory`, so many MB can be had
beyond what the forked process has, by the limit `of`. Each result has the exit code, negative for a signal, and what
was printed.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

Case = dict[str, Any]
# What a run imports, so that no fork has to.
LIBRARIES = (
    "surgeon.api", "surgeon.cli", "surgeon.diff.comparison", "surgeon.hub.rebuild", "surgeon.measure.verification",
    "surgeon.model.continuations", "surgeon.model.layer_stack", "surgeon.report.html", "surgeon.scores.grad_param",
    "surgeon.scores.score_pass", "surgeon.scoring", "surgeon.views.inspection",
    "surgeon.views.terminal", "jinja2", "vl_convert", "transformers.conversion_mapping",
    "transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama",
)  # fmt: skip
SECONDS = 300  # that a command may take


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # which ends it; called before the line above
    return server


def run_forked(cases: Sequence[Case], **environment: str) -> list[dict[str, Any]]:
    """Run cases one after the other; each has this process's environment and folder, and its own on top."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    shared = {**os.environ, **environment}
    asked = [
        {"folder": os.getcwd(), **case, "environment": {**shared, **case.get("environment", {})}} for case in cases
    ]
    print(json.dumps(asked), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer, "the process that forks has ended"
    found: list[dict[str, Any]] = json.loads(answer)
    return found


def surgeon_forked(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command as `subprocess.run` would."""
    (done,) = run_forked([{"arguments": [*map(str, arguments)]}], **environment)
    return subprocess.CompletedProcess(arguments, done["code"], done["stdout"], done["stderr"])


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


def limit_memory(of: str, megabytes: int) -> None:
    name = {"RLIMIT_AS": "VmSize:", "RLIMIT_DATA": "VmData:"}[of]
    said = Path("/proc/self/status").read_text().split()
    most = (int(said[said.index(name) + 1]) << 10) + (megabytes << 20)
    resource.setrlimit(getattr(resource, of), (most, most))


def fork(case: Case, logs: Path) -> int:
    """Start a case in a fork, which prints to files below `logs`; returns the fork's number."""
    child = os.fork()
    if child:
        return child
    code: Any = 99
    try:
        signal.alarm(SECONDS)
        for stream, name in ((0, os.devnull), (1, logs / "stdout"), (2, logs / "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND), stream)
        os.environ.clear()
        os.environ.update(case["environment"])
        os.chdir(case["folder"])
        if "memory" in case:
            limit_memory(case["of"], case["memory"])
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


def run(case: Case, logs: Path) -> dict[str, Any]:
    code = os.waitstatus_to_exitcode(os.waitpid(fork(case, logs), 0)[1])
    printed = {
        name: (logs / name).read_text(encoding="utf-8", errors="surrogateescape") for name in ("stdout", "stderr")
    }
    return {"code": code, "said": printed["stdout"] + printed["stderr"], **printed}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an import prints is no answer
    for module in LIBRARIES:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps([run(case, Path(folder)) for case in json.loads(line)]), file=answers, flush=True)


if __name__ == "__main__":
    main()
