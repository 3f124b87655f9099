"""Arithmetic does not know of ranks: one room does, and the few files that carry out a command."""

from __future__ import annotations

import ast
from pathlib import Path

import surgeon

HOUSE = Path(surgeon.__file__).parent
MAY = {"api.py", "console.py", "ending.py", "cli/running.py"}


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
