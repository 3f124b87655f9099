"""Two variants of a tiny model, and how tests send them.

PYTEST_DONT_REWRITE: it asserts nothing, and tests import it before it is loaded as a plugin.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ModelMaker
from hub_server import LoopbackHub

import surgeon
from surgeon.cli import app
from surgeon.hub.parcel import pack
from surgeon.hub.push import Target, push

RECIPE = """\
version: 1
name: two
model: MODEL
regions:
  some: {select: {random: 0.1, seed: 1}, layers: [0, 0]}
  others: {select: {random: 0.1, seed: 2}, layers: [0, 0]}
variants:
  cut: {operations: [{zero: some}]}
  halved: {operations: [{scale: others, by: 0.5}]}
output: OUT
"""


@pytest.fixture(scope="session")
def source(make_model: ModelMaker) -> Path:
    """A model in several shards, of which the variants leave some as they are."""
    return make_model("llama", shard="20KB", seed=5)


@pytest.fixture(scope="session")
def local_output(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The variants `cut` and `halved` of a model that is only on this disk."""
    root = tmp_path_factory.mktemp("local")
    return apply_recipe(root, str(source))


def apply_recipe(root: Path, model: str, **options: object) -> Path:
    (root / "two.yaml").write_text(RECIPE.replace("MODEL", model).replace("OUT", str(root / "two")))
    surgeon.apply(root / "two.yaml", **options)  # type: ignore[arg-type]
    return root / "two"


@pytest.fixture
def hub_output(hub_here: LoopbackHub, source: Path, tmp_path: Path) -> Path:
    """The same variants of the same model, taken from the Hub."""
    hub_here.add_folder("org/source", source)
    hub_here.add("org/source", {"README.md": b"---\nlicense: apache-2.0\nlanguage: [de, no]\n---\n# Source\n"})
    return apply_recipe(tmp_path, "hf://org/source")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def send(variant: Path, repo: str = "org/cut", **options: object):  # type: ignore[no-untyped-def]
    target = Target(repo, **options)  # type: ignore[arg-type]
    return push(pack(variant, target.address), target)


def main(arguments: list[str]) -> None:
    app(arguments, standalone_mode=False)
