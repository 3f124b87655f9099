"""How the package is built: no circle among its files, and no kind that is known outside its own file."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
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
# Names of the standard library that came after the oldest Python that pyproject.toml allows.
AFTER_3_10 = {
    "typing": {
        "LiteralString", "Never", "NotRequired", "Required", "Self", "TypeVarTuple", "Unpack", "assert_never",
        "assert_type", "dataclass_transform", "override", "reveal_type",
    },
    "enum": {"EnumType", "ReprEnum", "StrEnum", "member", "nonmember", "verify"},
    "asyncio": {"Runner", "TaskGroup", "timeout"},
    "tomllib": {"", "load", "loads"},
    "datetime": {"UTC"}, "contextlib": {"chdir"}, "itertools": {"batched"}, "hashlib": {"file_digest"},
    "collections.abc": {"Buffer"},
}  # fmt: skip


@dataclass
class Source:
    """What a file imports, anywhere in it, as (line, module, name); its classes, and what its `isinstance` ask for."""

    imports: list[tuple[int, str, str]] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    asked: list[tuple[int, set[str]]] = field(default_factory=list)

    def read(self, node: ast.AST) -> None:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            self.imports += [(node.lineno, node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            self.imports += [(node.lineno, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ClassDef):
            self.classes.add(node.name)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called == "isinstance":
                self.asked.append((node.lineno, set(re.findall(r"\w+", ast.unparse(node.args[1])))))
            elif called == "import_module":
                names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                self.imports += [(node.lineno, str(name), "") for name in names]


@pytest.fixture(scope="module")
def house() -> dict[str, Source]:
    """Every file of the package, by module."""
    found: dict[str, Source] = {}
    for path in sorted(HOUSE.rglob("*.py")):
        module = ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts).removesuffix(".__init__")
        found[module] = Source()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found[module].read(node)
    return found


def test_no_files_import_each_other_in_a_circle(house: dict[str, Source]) -> None:
    """Imports for type checking count too, and those by a name in quotes."""
    graph = {}
    for module, source in house.items():
        names = (f"{of}.{name}" if f"{of}.{name}" in house else of for _, of, name in source.imports)
        graph[module] = {name for name in names if name in house and name != module}
    assert "surgeon.regions.base" in graph["surgeon.regions.outlines"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_nothing_is_imported_that_the_oldest_python_lacks(house: dict[str, Source]) -> None:
    found = [
        f"{module}:{line} {name or of}"
        for module, source in house.items()
        for line, of, name in source.imports
        if name in AFTER_3_10.get(of, ())
    ]
    assert not found


def classes_of(*groups: str) -> dict[str, str]:
    """Return the classes of the package's own kinds, and the modules that they are in."""
    pairs = (where.split(":") for group in groups for where in OWN[group].values())
    return {name: module for module, name in pairs}


def test_no_ladder_over_kinds(house: dict[str, Source]) -> None:
    """No `isinstance` asks for a kind outside of its own file; each knows its own answers."""
    kinds = BASES | classes_of(*OWN).keys()
    found = [
        f"{module}:{line} {name}"
        for module, source in house.items()
        for line, asked in source.asked
        for name in asked & kinds - source.classes
    ]
    assert not found


def test_a_kind_is_named_in_its_own_file_and_the_registry_alone(house: dict[str, Source]) -> None:
    kinds = classes_of("surgeon.scores", "surgeon.regions", "surgeon.scopes")
    found = [
        f"{module}:{line} {name}"
        for module, source in house.items()
        for line, of, name in source.imports
        if kinds.get(name) == of and module not in kinds.values()
    ]
    assert not found
