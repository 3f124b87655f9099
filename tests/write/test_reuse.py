"""What is reused is proved: damage is found, and made again; what an interrupted run had staged is taken up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from forking import program_forked, run_forked, surgeon_forked
from test_output import tree

import surgeon
from surgeon.api import check_files
from surgeon.errors import CheckpointError, EnvironmentFailure, InputError

RecipeMaker = Callable[..., Path]


def zero_bytes(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4000, 2)
        file.write(bytes(4000))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "weights": lambda variant: zero_bytes(variant / "model.safetensors"),
    "weights gone": lambda variant: (variant / "model.safetensors").unlink(),
    "tokenizer gone": lambda variant: (variant / "tokenizer.json").unlink(),
    "config": lambda variant: (variant / "config.json").write_text("{}"),
    "marker": lambda variant: (variant / "surgeon.json").write_text("[]"),
    "marker without files": lambda variant: (variant / "surgeon.json").write_text(
        json.dumps({**json.loads((variant / "surgeon.json").read_text()), "files": {}})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_variant_is_made_again(damage: str, light_recipe: RecipeMaker, tmp_path: Path) -> None:
    surgeon.apply(light_recipe())
    variant = tmp_path / "out" / "variants" / "cut"
    before, manifest = tree(variant), json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert surgeon.apply(light_recipe()).variants["cut"].reused
    DAMAGE[damage](variant)
    if not damage.startswith("marker"):
        for folder in (variant, tmp_path / "out"):
            with pytest.raises(CheckpointError, match=r"missing|not the file that was written"):
                check_files(folder)
    assert not surgeon.apply(light_recipe()).variants["cut"].reused
    assert tree(variant) == before
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["outputs"] == manifest["outputs"]
    assert check_files(tmp_path / "out") > check_files(variant) > 0


def rewrite_metadata(model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_file(load_file(model / "model.safetensors"), model / "model.safetensors", {"format": "pt", "note": "new"})


CHANGED: dict[str, Callable[[Path], object]] = {
    "tokenizer": lambda model: (model / "tokenizer.json").write_text("{}"),
    "a new companion": lambda model: (model / "LICENSE").write_text("MIT"),
    "a companion gone": lambda model: (model / "generation_config.json").unlink(),
    "the header": rewrite_metadata,
    "the shard's name": lambda model: (model / "model.safetensors").rename(model / "other.safetensors"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_variant_follows_what_lies_beside_the_sources_tensors(
    change: str, light_recipe: RecipeMaker, llama: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    recipe = light_recipe(**{f"model: {llama}": f"model: {model}"})
    surgeon.apply(recipe)
    CHANGED[change](model)
    assert not surgeon.apply(recipe).variants["cut"].reused
    fresh = surgeon.apply(recipe, output=tmp_path / "fresh")
    assert not fresh.variants["cut"].reused
    assert tree(tmp_path / "out" / "variants") == tree(tmp_path / "fresh" / "variants")


def test_verify_compares_with_what_was_written_down(light_recipe: RecipeMaker, tmp_path: Path) -> None:
    surgeon.apply(light_recipe())
    out = tmp_path / "out"
    verify = partial(surgeon_forked, "verify")
    assert verify(out).returncode == 0
    for name in ("regions/core.region.safetensors", "recipe.yaml", "report.json", "variants/cut/model.safetensors"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        result = verify(out)
        assert result.returncode == 2, name
        assert result.stderr.startswith(f"error: {out / name}: not the file that was written")
        assert len(result.stderr.splitlines()) == 1
        (out / name).write_bytes(whole)
    (out / "variants" / "cut" / "README.md").write_text("my own words")  # the card is its owner's
    assert verify(out).returncode == 0
    zero_bytes(out / "variants" / "cut" / "model.safetensors")
    result = verify(out / "variants" / "cut", "--languages", "en", "--tokens", 20)
    assert (result.returncode, result.stdout) == (2, "")


def test_verify_of_an_output_measures_when_told(light_recipe: RecipeMaker, tmp_path: Path, llama: Path) -> None:
    surgeon.apply(light_recipe())
    small = ["--languages", "en", "--tokens", "20", "--window", "20", "--json"]
    result = surgeon_forked("verify", tmp_path / "out", "--measure", "--base", llama, *small)
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)) == {"base", "cut"}


def test_a_checkpoint_that_surgeon_did_not_write_has_nothing_to_be_compared_with(llama: Path) -> None:
    assert check_files(llama) == 0


def test_a_damaged_region_in_the_cache_is_made_again(light_recipe: RecipeMaker, tmp_path: Path) -> None:
    surgeon.apply(light_recipe())
    before = tree(tmp_path / "out" / "regions")
    kept = list((Path(os.environ["SURGEON_CACHE"]) / "regions").glob("*.safetensors"))
    assert len(kept) == 3
    for path in kept:
        data = bytearray(path.read_bytes())
        data[-9] ^= 255
        path.write_bytes(data)
    surgeon.apply(light_recipe())
    assert tree(tmp_path / "out" / "regions") == before


def test_staged_variants_of_an_interrupted_run_are_taken_up(
    light_recipe: RecipeMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variants = "variants:\n  first: {operations: [{zero: random}]}\n"
    path = light_recipe(**{"variants:\n": variants})
    whole = surgeon.apply(path, output=tmp_path / "whole")
    real = surgeon.run.stage_variant  # type: ignore[attr-defined]
    calls = []

    def full_disk(*arguments: object, **keywords: object) -> object:
        if calls:
            raise EnvironmentFailure("no space left")
        calls.append(1)
        return real(*arguments, **keywords)

    monkeypatch.setattr("surgeon.run.stage_variant", full_disk)
    with pytest.raises(EnvironmentFailure):
        surgeon.apply(path)
    staged = tmp_path / "out" / "variants" / ".first.staging"
    inode = (staged / "model.safetensors").stat().st_ino
    monkeypatch.setattr("surgeon.run.stage_variant", real)
    surgeon.apply(path)
    assert (tmp_path / "out" / "variants" / "first" / "model.safetensors").stat().st_ino == inode  # not written again
    assert not staged.exists()
    ours = tree(tmp_path / "out" / "variants")
    assert ours == tree(tmp_path / "whole" / "variants")
    assert whole.variants["first"].entries == surgeon.apply(path).variants["first"].entries


def test_a_staged_variant_that_is_damaged_is_made_again(
    light_recipe: RecipeMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    surgeon.apply(light_recipe(), output=tmp_path / "whole")
    monkeypatch.setattr("surgeon.api.verify_variants", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        surgeon.apply(light_recipe())
    assert not (tmp_path / "out" / "variants" / "cut").exists()
    zero_bytes(tmp_path / "out" / "variants" / ".cut.staging" / "model.safetensors")
    monkeypatch.undo()
    surgeon.apply(light_recipe())
    assert tree(tmp_path / "out" / "variants") == tree(tmp_path / "whole" / "variants")


def test_without_a_model_to_run_neither_torch_nor_transformers_is_imported(
    light_recipe: RecipeMaker,
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "surgeon", "apply", str(light_recipe())]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "import time:" in line}
    assert "surgeon.write.staging" in imported
    assert not {"torch", "transformers", "datasets", "pyarrow"} & imported


# It interrupts itself at the first piece of some hundred.
COPYING = """
import os, signal, time, surgeon.write.shards as shards
real = shards._Writer.put
def slow(writer, data):
    print("here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    real(writer, data)
shards._BUFFER_BYTES = 1024
shards._Writer.put = slow
from surgeon.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_run_says_one_line_and_the_same_command_goes_on(
    number: str, code: int, light_recipe: RecipeMaker, tmp_path: Path
) -> None:
    path = light_recipe()
    strike = {"owner": "surgeon.api", "name": "verify_variants", "nth": 1, "after": False, "how": number}
    (ended,) = run_forked([{"arguments": ["apply", str(path)], "strike": strike}])
    assert ended["code"] == code
    before = (
        "plan, texts, libraries",
        "note: neither written nor measured",
        "select regions",
        "write cut",
        "2 steps (",
    )  # how far it came, and how long it was to take
    said = [line for line in ended["stderr"].splitlines() if not line.startswith(before)]
    assert said == ["interrupted: what was finished is kept, and the same command goes on from there"]
    staged = tmp_path / "out" / "variants" / ".cut.staging" / "model.safetensors"
    inode = staged.stat().st_ino
    assert surgeon_forked("apply", path).returncode == 0
    assert (tmp_path / "out" / "variants" / "cut" / "model.safetensors").stat().st_ino == inode


def test_a_run_that_is_interrupted_while_it_copies_ends_at_once(light_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = light_recipe()
    ended = program_forked(COPYING, "apply", path, "--jobs", "2")
    assert ended.returncode == 130, ended.stderr
    assert 0 < ended.stdout.count("here\n") < 50
    assert not (tmp_path / "out" / "variants" / "cut").exists()
    assert surgeon_forked("apply", path).returncode == 0


def test_the_resolved_recipe_says_what_differs_elsewhere(
    light_recipe: RecipeMaker,
    tmp_path: Path,
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes: list[str] = []

    class Notes(surgeon.api.Progress):  # type: ignore[name-defined, misc]
        def note(self, text: str) -> None:
            notes.append(text)

    surgeon.apply(light_recipe())
    again = tmp_path / "out" / "recipe.yaml"
    surgeon.apply(again, output=tmp_path / "elsewhere", progress=Notes())
    assert [note for note in notes if "without effect" not in note] == []  # the control is measured only
    for folder in ("variants", "regions"):
        assert tree(tmp_path / "elsewhere" / folder) == tree(tmp_path / "out" / folder)
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("out", "elsewhere")]
    assert manifests[0]["outputs"] == manifests[1]["outputs"]

    changed = json.loads((tmp_path / "out" / "manifest.json").read_text())
    changed["inputs"]["model.safetensors"] = "0" * 64
    changed["environment"]["packages"]["numpy"] = "0.1"
    changed["outputs"]["variants/cut/model.safetensors"] = "1" * 64
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(changed))
    surgeon.apply(again, output=tmp_path / "third", progress=Notes())
    assert any("variants/cut/model.safetensors" in note for note in notes)
    assert any(note.startswith("inputs.model.safetensors: 0000") for note in notes)
    assert any(note.startswith("environment.packages.numpy: 0.1 there") for note in notes)
    assert not any("transformers" in note for note in notes)


def test_a_marker_that_points_outside_is_refused(light_recipe: RecipeMaker, tmp_path: Path) -> None:
    surgeon.apply(light_recipe())
    marker = tmp_path / "out" / "variants" / "cut" / "surgeon.json"
    data = json.loads(marker.read_text())
    marker.write_text(json.dumps({**data, "files": {"../../recipe.yaml": "0" * 64}}))
    with pytest.raises(InputError, match="lies outside"):
        check_files(marker.parent)
