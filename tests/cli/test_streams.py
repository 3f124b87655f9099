"""The exit code is the command's, and there is no traceback, whoever reads what is printed, or nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forking import surgeon_forked

RUN = [sys.executable, "-m", "surgeon"]
ASCII = {"PYTHONIOENCODING": "ascii"}


def shell(line: str, **environment: str) -> tuple[int, str, str]:
    """Run a line of bash in which `S` is the command line; its exit code counts."""
    script = f'S() {{ {" ".join(RUN)} "$@"; }}\n{line}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False, env={**os.environ, **environment})
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("S languages | true; exit ${PIPESTATUS[0]}", 0),
        ("S schema | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 0),
        ("S schema | sleep 0; exit ${PIPESTATUS[0]}", 0),
        ("S --help | true; exit ${PIPESTATUS[0]}", 0),
        ("S inspect nothing/there/x | true; exit ${PIPESTATUS[0]}", 2),
        ("S inspect nothing/there/x 2>&1 | true; exit ${PIPESTATUS[0]}", 2),
        ("S inspect nothing/there/x 2>&-", 2),
        ("S languages >&-", 0),
        ("S languages <&- >&- 2>&-", 0),
        ("S inspect nothing/there/x <&- >&- 2>&-", 2),
        ("S languages >/dev/full", 3),
    ],
)
def test_streams_that_nobody_reads(line: str, code: int) -> None:
    found, _, err = shell(line)
    assert found == code, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_streams_of_another_encoding() -> None:
    for line in ("S languages", "S recipes zero_core", "S inspect builtin:tiny30"):
        code, out, err = shell(line, **ASCII)
        assert (code, err) == (0, "")
        assert out.isascii()
    wanted = json.loads(shell("S languages --json")[1])
    code, out, err = shell("S languages --json", **ASCII)
    assert (code, err) == (0, "")
    assert out.isascii()
    assert json.loads(out) == wanted


def test_a_file_never_stands_where_stderr_was(tmp_path: Path) -> None:
    """With stderr closed the next file that is opened would be number 2, and warnings would go into it."""
    path = tmp_path / "opened"
    code = f"import surgeon.ending as e; e._open_streams(); f = open({str(path)!r}, 'w'); print(f.fileno())"
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" 2>&- <&-'], capture_output=True, check=True)
    assert int(done.stdout) > 2


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/x\xff"
    os.makedirs(folder)
    name = os.fsdecode(folder)  # as a process has it of what it is given
    for words in (["plan", "zero_core", "--output", name], ["apply", "zero_core", "--output", name],
                  ["inspect", name], ["verify", name], ["cut", name]):  # fmt: skip
        done = surgeon_forked(*words)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
