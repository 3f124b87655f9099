"""A patch goes to the Hub alone, and does there what it does here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_server import LoopbackHub
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.hashing import file_hash
from surgeon.cli import app
from surgeon.errors import CheckpointError, InputError
from surgeon.hub.parcel import pack
from surgeon.hub.push import Target, push
from surgeon.operations import Zero
from surgeon.operations.edits import Surgery
from surgeon.region.region import Region
from surgeon.visible import visible
from surgeon.write.patches import write_variant_patch

RECIPE = """\
version: 1
name: small
model: MODEL
regions:
  some: {select: {random: 0.1, seed: 1}, layers: [0, 0]}
variants:
  cut: {operations: [{zero: some}], write: patch}
  whole: {operations: [{zero: some}]}
  unwritten: {operations: [{zero: some}], write: false}
output: OUT
"""


@pytest.fixture(scope="module")
def patch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch of the builtin model, which everybody has."""
    return run(tmp_path_factory.mktemp("patch"), "builtin:tiny30")


def run(folder: Path, model: str, more: str = "") -> Path:
    (folder / "r.yaml").write_text(RECIPE.replace("MODEL", model).replace("OUT", str(folder / "out")) + more)
    surgeon.apply(folder / "r.yaml")
    return folder / "out" / "variants" / "cut.patch.safetensors"


def saying(patch: Path, folder: Path, name: str = "cut.patch.safetensors", **provenance: Any) -> Path:
    """A copy of a patch and its run, in which the patch says something else of where it comes from."""
    shutil.copytree(patch.parent.parent, folder)
    data = patch.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    said = header["__metadata__"]
    said["provenance"] = json.dumps({**json.loads(said["provenance"]), **provenance})
    text = json.dumps(header).encode()
    (folder / "variants" / patch.name).unlink()
    copy = folder / "variants" / name
    copy.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["outputs"][f"variants/{patch.name}"]
    manifest["outputs"][f"variants/{name}"] = file_hash(copy)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return copy


HOSTILE = (
    "<script>alert(1)</script>", "x\n\n# Heading", "x\n---\nlicense: mit\n---\n", "![x](http://evil.example/x.png)",
    "[x](javascript:alert(1))", "`x` <img src=x onerror=alert(1)>", "x\r# y", "| a | b |", "x\n```\n<b>", "1. x", "- x",
)  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_a_patch_says_of_itself_is_text_in_the_card(hostile: str, patch: Path, tmp_path: Path) -> None:
    one = saying(patch, tmp_path / "run", recipe=hostile, variant=hostile)
    plain = saying(patch, tmp_path / "plain", recipe="r", variant="v")
    card, expected = (pack(path, "hf://you/patches").card for path in (one, plain))
    assert yaml.safe_load(card.split("---\n")[1]) == yaml.safe_load(expected.split("---\n")[1])
    body, wanted = (MarkdownIt().parse(text.split("---\n", 2)[2]) for text in (card, expected))
    assert [token.type for token in body] == [token.type for token in wanted]  # as many headings, lists, paragraphs
    heading = next(token for token in body if token.type == "inline")
    assert {child.type for child in heading.children or ()} <= {"text", "text_special"}  # no markup, no HTML
    assert heading.children
    assert "".join(child.content for child in heading.children) == f"{visible(hostile)}: {visible(hostile)}"


@pytest.mark.parametrize(
    "name", ["a'b.patch.safetensors", "a: b.patch.safetensors", "`.patch.safetensors", "}.patch.safetensors"]
)
def test_the_recipe_in_the_card_is_one_whatever_the_file_is_called(name: str, patch: Path, tmp_path: Path) -> None:
    card = pack(saying(patch, tmp_path / "run", name), "hf://you/patches").card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```\n")[0])
    assert recipe["regions"]["changed"]["file"] == f"hf://you/patches/{name}"
    assert recipe["variants"]["patched"]["operations"] == [{"restore": "changed", "from": f"hf://you/patches/{name}"}]


@pytest.mark.parametrize("revision", ["x\n```\n<script>", 3, ["a"], "../x y", "`"])
def test_a_revision_that_is_none_is_refused(revision: Any, patch: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which is none"):
        pack(saying(patch, tmp_path / "run", revision=revision), "hf://you/patches")
    with pytest.raises(InputError, match="which others do not have"):
        pack(saying(patch, tmp_path / "other", model="builtin:x\n```\n<script>"), "hf://you/patches")


def test_it_comes_back_and_makes_the_variant(hub_here: LoopbackHub, llama: Path, tmp_path: Path) -> None:
    hub_here.add_folder("org/source", llama)
    patch = run(tmp_path, "hf://org/source")
    pushed = CliRunner().invoke(app, ["push", str(patch), "you/patches"], catch_exceptions=False)
    assert pushed.exit_code == 0, pushed.output
    there = hub_here.files("you/patches")
    assert set(there) - {".gitattributes"} == {"README.md", "cut.patch.safetensors", "manifest.json", "recipe.yaml"}
    assert there["cut.patch.safetensors"] == patch.read_bytes()
    card = ModelCard(there["README.md"].decode())
    assert card.data.base_model == "org/source"
    recipe = yaml.safe_load(card.text.split("```yaml")[1].split("```")[0])  # the card's recipe is one
    recipe |= {"version": 1, "name": "again", "output": str(tmp_path / "again")}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    surgeon.apply(tmp_path / "again.yaml")
    made, expected = (
        (tmp_path / out / "variants" / name / "model.safetensors").read_bytes()
        for out, name in (("again", "patched"), ("out", "whole"))
    )
    assert made == expected


def test_a_second_push_changes_nothing_and_another_s_model_is_left_alone(hub_here: LoopbackHub, patch: Path) -> None:
    target = Target("you/patches")
    first = push(pack(patch, target.address), target)
    assert first.sent == 4
    assert push(pack(patch, target.address), target).sent == 0
    hub_here.add("you/patches", {"cut.patch.safetensors": b"changed"})
    assert push(pack(patch, target.address), target).sent == 1  # a repository of patches is ours
    hub_here.add("org/source", {"model.safetensors": b"somebody's"})
    with pytest.raises(InputError, match="holds files that surgeon did not push"):
        push(pack(patch, "hf://org/source"), Target("org/source"))


def test_a_recipe_pushes_patches_that_it_names(hub_here: LoopbackHub, tmp_path: Path) -> None:
    run(tmp_path, "builtin:tiny30", "push: {repo: 'you/{variant}', variants: [cut, whole]}\n")
    assert "cut.patch.safetensors" in hub_here.files("you/cut")
    assert "model.safetensors" in hub_here.files("you/whole")
    with pytest.raises(InputError, match="'unwritten' is not written, so it cannot be pushed"):
        run(tmp_path, "builtin:tiny30", "push: {repo: you/x, variants: [unwritten]}\n")


def test_what_nobody_could_use_or_check_is_not_sent(patch: Path, llama: Path, tmp_path: Path) -> None:
    local = tmp_path / "out" / "variants" / "cut.patch.safetensors"
    local.parent.mkdir(parents=True)
    model, some = Checkpoint.open(llama), Region.from_masks({"model.norm.weight": np.ones(32, np.bool_)})
    write_variant_patch(Surgery(model, [Zero(zero="some")], {"some": some}), local, {"model": str(llama)})
    manifest = {"outputs": {"variants/cut.patch.safetensors": file_hash(local)}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "out" / "recipe.yaml").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="which others do not have"):
        pack(local, "hf://you/x")
    data = local.read_bytes()
    local.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="not the file that was written"):
        pack(local, "hf://you/x")
    alone = tmp_path / "alone.patch.safetensors"
    alone.write_bytes(patch.read_bytes())
    with pytest.raises(CheckpointError, match=r"no manifest\.json of the run"):
        pack(alone, "hf://you/x")
