"""Arithmetic does not know of ranks: one room does, and the few files that carry out a command."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.errors import InputError
from surgeon.ranks.group import own_device

HOUSE = Path(surgeon.__file__).parent
MAY = {"api.py", "console.py", "ending.py", "cli/auditing.py", "cli/running.py"}


def imported(path: Path) -> set[str]:
    """Return every module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_ranks_are_imported_by_their_room_and_where_commands_are_carried_out() -> None:
    asking, distributed = set(), set()
    for path in HOUSE.rglob("*.py"):
        where = path.relative_to(HOUSE)
        modules = imported(path)
        if any(name == "surgeon.ranks" or name.startswith("surgeon.ranks.") for name in modules):
            asking.add(where.as_posix())
        if any(name.startswith("torch.distributed") for name in modules) and where.parts[0] != "freeze":
            distributed.add(where.parts[0])
    assert {name for name in asking if not name.startswith("ranks/")} == MAY
    assert distributed == {"ranks"}


def test_nothing_else_reads_what_a_launcher_says() -> None:
    told = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    found = {
        path.relative_to(HOUSE).parts[0]
        for path in HOUSE.rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in told)
    }
    assert found <= {"ranks", "freeze"}


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str, count: int, **told: str) -> str:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        return own_device(device)

    assert chosen("cuda", 8) == "cuda"
    assert chosen("cuda:3", 8, RANK="0", WORLD_SIZE="1") == "cuda:3"
    assert chosen("cpu", 0, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1") == "cpu"
    assert chosen("cuda", 8, RANK="9", WORLD_SIZE="16", LOCAL_RANK="1") == "cuda:1"
    assert chosen("cuda", 8, RANK="9", WORLD_SIZE="16") == "cuda:1"  # by launchers that number whole machines
    assert chosen("cuda", 1, RANK="3", WORLD_SIZE="4", LOCAL_RANK="3", CUDA_VISIBLE_DEVICES="3") == "cuda:0"
    with pytest.raises(InputError, match="process 3 of this machine has no GPU: there are 2"):
        chosen("cuda", 2, RANK="3", WORLD_SIZE="4", LOCAL_RANK="3")
    with pytest.raises(InputError, match="write --device cuda"):
        chosen("cuda:1", 2, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")
