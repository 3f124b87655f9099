"""Runs the command line in forks of one process, which has done a run before: a second each, not six.

The process is started once, when the first test asks, and ends with the tests. As a script it reads a line of JSON with
a list of cases, and answers with a line of results. Each case has the `arguments` of the command; the `environment` and
the `folder` that it has; and `strike`, if something happens meanwhile: when `owner.name` is called for the `nth` time,
before or after that call, the file `path` becomes `shorter`, `other` or `gone`, or the process gets a signal. With
`memory`, so many MB can be had beyond what the forked process has, by the limit `of`. With `program`, that text or file
of Python is run and not the command line. With `impatient`, nothing waits that sleeps; with `undrawn` no picture is
drawn. `stdin` is the text that it is given. An `alone` case has no variable of this process's environment. Each result
has the exit code, negative for a signal, and what was printed.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from undrawn import draw_nothing

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
AS_STARTED = dict(os.environ)  # before a test changes it
LITTLE = [
    "regions.core.score.languages=[en]", "regions.core.score.samples=1", "regions.core.score.sequence_length=16",
    "verify.languages=[en]", "verify.tokens=8", "verify.new_tokens=1", "verify.expect=[]",
]  # fmt: skip


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=AS_STARTED
    )
    assert server.stdin is not None
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # which ends it; called before the line above
    return server


def run_forked(cases: Sequence[Case], **environment: str) -> list[dict[str, Any]]:
    """Run cases one after the other; each has this process's environment and folder, and its own on top."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    asked = [{"folder": os.getcwd(), **case} for case in cases]
    for case in asked:
        shared = {} if case.get("alone") else {**os.environ, **environment}
        case["environment"] = {**shared, **case.get("environment", {})}
    print(json.dumps(asked), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer, "the process that forks has ended"
    found: list[dict[str, Any]] = json.loads(answer)
    return found


def surgeon_forked(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command as `subprocess.run` would."""
    (done,) = run_forked([{"arguments": [*map(str, arguments)]}], **environment)
    return subprocess.CompletedProcess(arguments, done["code"], done["stdout"], done["stderr"])


def program_forked(
    program: str | Path, *arguments: object, undrawn: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run some Python, a text or a file, as a process of its own would."""
    case = {"program": str(program), "is_file": isinstance(program, Path), "undrawn": undrawn}
    case["arguments"] = [*map(str, arguments)]
    (done,) = run_forked([case], **environment)
    return subprocess.CompletedProcess(arguments, done["code"], done["stdout"], done["stderr"])


def change(path: str, how: str) -> None:
    if how in signal.Signals.__members__:
        os.kill(os.getpid(), signal.Signals[how])
    elif how == "shorter":
        os.truncate(path, 4096)
    elif how == "gone":
        os.remove(path)
    else:
        with open(path, "r+b") as file:
            file.seek(-400, os.SEEK_END)
            file.write(b"\x3f" * 64)


def arm(owner: str, name: str, nth: int, after: bool, how: str, path: str = "") -> None:
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
        (logs / "stdin").write_text(case.get("stdin", ""))
        for stream, name in ((0, logs / "stdin"), (1, logs / "stdout"), (2, logs / "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if stream else 0)), stream)
        os.environ.clear()
        os.environ.update(case["environment"])
        os.chdir(case["folder"])
        if "memory" in case:
            limit_memory(case["of"], case["memory"])
        if "strike" in case:
            arm(**case["strike"])
        # What a shell starts in the background ignores it, and so would all that is started from there.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if case.get("undrawn"):
            draw_nothing(pytest.MonkeyPatch())
        if case.get("impatient"):
            time.sleep = lambda seconds: None
        read_settings_again()
        sys.argv = ["surgeon", *case["arguments"]]
        start(case)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(case: Case) -> None:
    if "program" not in case:
        from surgeon.cli import main

        main()
    elif case["is_file"]:
        sys.path.insert(0, str(Path(case["program"]).parent))
        runpy.run_path(case["program"], run_name="__main__")
    else:
        exec(compile(case["program"], "program", "exec"), {"__name__": "__main__"})


def read_settings_again() -> None:
    """Take from the environment what the Hub's client took from it when it was imported."""
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        importlib.reload(constants)


def warm_up() -> None:
    """Do a small run, whose templates and tables all forks then have.

    Nothing is drawn in it: what draws has threads, which a fork would lack.
    """
    import surgeon
    from surgeon.memory import require_room_for_figures

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        patch.setenv("SURGEON_CACHE", str(Path(folder, "cache")))
        surgeon.apply("zero_core", output=Path(folder, "out"), overrides=LITTLE)
    require_room_for_figures.cache_clear()  # which a fork that draws has to ask for


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
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps([run(case, Path(folder)) for case in json.loads(line)]), file=answers, flush=True)


if __name__ == "__main__":
    main()
