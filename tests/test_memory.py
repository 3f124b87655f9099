"""Out of memory ends in exit code 3 and one message that says what would help, wherever it happens."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import with_pictures
from forking import run_forked

from surgeon.errors import CheckpointError
from surgeon.memory import memory_error

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of addresses are Linux's here")

STEPS = (0, 4, 8, 16, 32, 48, 64, 96, 128, 1024)  # MB beyond what a process with all libraries loaded has
DRAWING = (0, 16, 64, 256, 512, 1000, 1040, 1080, 1120, 2048)  # the same, where what is drawn with has to have room
DRAWN = (0, 16, 32, 64, 96, 128, 192, 256, 384, 1024)  # the same, where its libraries are asked and pictures are there
RECIPE = """\
version: 1
name: memory
model: builtin:tiny30
regions:
  core: {{score: {{kind: grad_param, languages: [en], sequence_length: 128, samples: 2}}, select: {{top: 0.01}}}}
variants:
  cut: {{operations: [{{zero: core}}]}}
verify: {{languages: [en], tokens: 128, window: 64}}
output: {out}
"""


@pytest.mark.slow
def test_ten_limits_of_memory_and_five_commands(tmp_path: Path) -> None:
    recipe, whole = tmp_path / "memory.yaml", tmp_path / "whole"
    recipe.write_text(RECIPE.format(out=whole))
    cut = ["cut", "builtin:tiny30", "--quick", "--set", "verify.languages=[en]", "--device", "cpu"]
    commands = {
        "apply": ["apply", str(recipe), "--output"],
        "score": ["score", str(recipe), "--output"],
        "cut": [*cut, "--output"],
        "verify": ["verify", "builtin:tiny30", "--languages", "en", "--tokens", "64"],
        "diff": ["diff", "builtin:tiny30", str(whole / "variants" / "cut")],
    }
    cases: list[dict[str, Any]] = []
    for name, arguments in commands.items():
        for step in {"apply": DRAWING, "cut": DRAWN}.get(name, STEPS):
            to = [str(tmp_path / f"{name}-{step}")] if arguments[-1] == "--output" else []
            cache = tmp_path / f"cache-{name}-{step}"
            if name == "cut":  # its pictures are those of the run before; those of `apply` are drawn under the limit
                with_pictures(cache)
            limit = "RLIMIT_DATA" if name in ("apply", "cut") else "RLIMIT_AS"  # drawing reserves 64 GB of addresses
            environment = {"SURGEON_CACHE": str(cache)}
            cases.append({"arguments": arguments + to, "environment": environment, "memory": step, "of": limit})
    before = run_forked(
        [{"arguments": ["apply", str(recipe)]}, {"arguments": [*cut, "--output", str(tmp_path / "cut")]}]
    )
    assert [found["code"] for found in before] == [0, 0], before
    done = run_forked(cases)
    for case, found in zip(cases, done, strict=True):
        where = f"{case['arguments']} with {case['memory']} MB of {found['code']}: {found['said'][-2000:]}"
        assert found["code"] in (0, 3), where
        assert "Traceback" not in found["said"], where
        errors = [line for line in found["said"].splitlines() if line.startswith("error: ")]
        assert len(errors) == (found["code"] == 3), where
        for line in errors:
            assert line.startswith("error: out of memory"), where
            assert "batch_size" in line, where
    codes = {name: [done[i].get("code") for i in range(k * 10, k * 10 + 10)] for k, name in enumerate(commands)}
    for name in ("apply", "score", "cut", "verify"):
        assert codes[name].count(3) >= 3, codes
        assert codes[name][-1] == 0, codes


@pytest.mark.parametrize("megabytes", [300, 500])
def test_with_no_room_for_the_libraries_it_is_said_before_they_abort(megabytes: int, tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    command = [sys.executable, "-m", "surgeon", "verify", "builtin:tiny30", "--languages", "en", "--tokens", "32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, preexec_fn=limited, check=False, timeout=120
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: out of memory"), done.stderr
    assert done.stderr.count("\n") == 1


def raised(error: BaseException) -> BaseException:
    """The error that a message of ours was made of it."""
    try:
        try:
            raise error
        except Exception:
            raise CheckpointError("config.json describes no model that can be built") from None
    except CheckpointError as ours:
        return ours


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
    ids=str,
)
def test_what_libraries_raise_for_it_is_known_also_inside_another_error(error: BaseException) -> None:
    assert memory_error(error) is error
    assert memory_error(raised(error)) is error


def test_nothing_else_is_taken_for_it() -> None:
    for error in (RuntimeError("shape '[2]' is invalid"), OSError(errno.ENOSPC, "No space left"), ImportError("no x")):
        assert memory_error(error) is None
        assert memory_error(raised(error)) is None
    assert memory_error(CheckpointError("a tensor named 'out of memory'")) is None


def test_only_the_command_line_changes_how_the_allocator_keeps_memory() -> None:
    """After a large block was freed, glibc takes the next one from its heap, unless the threshold was fixed."""
    program = """
import ctypes, sys
from surgeon.memory import give_memory_back, hand_back_large_blocks
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc.mallinfo2.restype = Info
if sys.argv[1] == "ours":
    hand_back_large_blocks()
give_memory_back()
libc.free(libc.malloc(20 << 20))
before = libc.mallinfo2().hblkhd
block = libc.malloc(20 << 20)
print(libc.mallinfo2().hblkhd > before)
"""
    found = {
        whose: subprocess.run(
            [sys.executable, "-c", program, whose], capture_output=True, text=True, check=True
        ).stdout.strip()
        for whose in ("callers", "ours")
    }
    assert found == {"callers": "False", "ours": "True"}
