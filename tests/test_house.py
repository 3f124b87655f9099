"""How the package is built: no circle among its files, and no kind that is known outside its own file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import surgeon
from surgeon.kinds import OWN

HOUSE = Path(surgeon.__file__).parent
# Beside the kinds of the registry: what they extend, and what a recipe may say in two ways.
BASES = {
    "Score", "SampledScore", "WeightScore", "ForwardScore", "BackwardScore", "RegionKind", "Measurement", "Scope",
    "TextSpec", "Dequantized",
}  # fmt: skip


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts).removesuffix(".__init__")


# The syntax of every file; read once for all tests here.
NODES = {
    module_of(path): [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))] for path in sorted(HOUSE.rglob("*.py"))
}


def imported(module: str) -> Iterator[str]:
    """Yield the files of the package that one imports anywhere in it, for type checking or by a name in quotes too."""
    for node in NODES[module]:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NODES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module: {name for name in imported(module) if name in NODES and name != module} for module in NODES}
    room = {module for module in NODES if module.startswith("surgeon.freeze.")}  # has one yet
    graph |= {module: graph[module] - room for module in room}
    assert "surgeon.regions.base" in graph["surgeon.regions.outlines"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def classes_of(*groups: str) -> dict[str, str]:
    """Return the classes of the package's own kinds, and the modules that they are in."""
    pairs = (where.split(":") for group in groups for where in OWN[group].values())
    return {name: module for module, name in pairs}


def test_no_ladder_over_kinds() -> None:
    """No `isinstance` asks for a kind outside of its own file; each knows its own answers."""
    kinds = BASES | classes_of(*OWN).keys()
    own = {(module, node.name) for module, nodes in NODES.items() for node in nodes if isinstance(node, ast.ClassDef)}
    found = []
    for module, nodes in NODES.items():
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                asked = set(re.findall(r"\w+", ast.unparse(node.args[1]))) & kinds
                found += [f"{module}:{node.lineno} {name}" for name in asked if (module, name) not in own]
    assert not found


def test_a_kind_is_named_in_its_own_file_and_the_registry_alone() -> None:
    kinds = classes_of("surgeon.scores", "surgeon.regions", "surgeon.scopes")
    found = [
        f"{module}:{node.lineno} {alias.name}"
        for module, nodes in NODES.items()
        for node in nodes
        if isinstance(node, ast.ImportFrom) and module not in kinds.values()
        for alias in node.names
        if kinds.get(alias.name) == node.module
    ]
    assert not found
