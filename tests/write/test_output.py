"""The output folder: nobody's files are lost in it, and what killed or earlier runs left there goes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forking import surgeon_forked

import surgeon
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.write.output import clear_staging

RecipeMaker = Callable[..., Path]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_of_the_users_are_refused_and_with_overwrite_left_alone(
    light_recipe: RecipeMaker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"holds thesis.txt, which surgeon did not write.*--overwrite"):
        surgeon.apply(light_recipe())
    assert tree(out) == {"thesis.txt": b"precious"}
    surgeon.apply(light_recipe(), overwrite=True)
    surgeon.apply(light_recipe())  # now the folder is surgeon's
    assert (out / "thesis.txt").read_text() == "precious"


def test_other_folders_beside_are_in_nobodys_way(light_recipe: RecipeMaker, tmp_path: Path) -> None:
    (tmp_path / "out" / "another-run").mkdir(parents=True)
    (tmp_path / "out" / "another-run" / "report.json").write_text("{}")
    (tmp_path / "out" / ".gitignore").write_text("*")
    surgeon.apply(light_recipe())
    assert (tmp_path / "out" / "another-run" / "report.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["figures", "regions", "variants"])
def test_a_folder_of_a_name_that_surgeon_uses_is_in_the_way(
    name: str, light_recipe: RecipeMaker, tmp_path: Path
) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=f"holds {name}, which surgeon did not write"):
        surgeon.apply(light_recipe())


def test_another_recipes_run_is_refused_and_with_overwrite_replaced(light_recipe: RecipeMaker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    surgeon.apply(light_recipe())
    before = tree(out)
    other = {"name: test": "name: other", "  cut:": "  gone:", "  bottom:": "  lowest:", "zero: bottom": "zero: lowest"}
    with pytest.raises(InputError, match=r"holds the run of another recipe, 'test'"):
        surgeon.apply(light_recipe(**other))
    assert {k: v for k, v in tree(out).items() if k != ".surgeon.lock"} == {
        k: v for k, v in before.items() if k != ".surgeon.lock"
    }
    surgeon.apply(light_recipe(**other), overwrite=True)
    assert [path.name for path in (out / "variants").iterdir()] == ["gone"]
    assert sorted(path.name.partition(".")[0] for path in (out / "regions").iterdir()) == ["core", "lowest", "random"]
    manifest = json.loads((out / "manifest.json").read_text())
    there = {name for name in tree(out) if name not in (".surgeon.lock", "manifest.json")}
    assert there == {*manifest["outputs"], *manifest["report"]}


def test_what_the_recipe_no_longer_names_goes_and_variants_are_said_to_be_old(
    light_recipe: RecipeMaker, tmp_path: Path
) -> None:
    out, notes = tmp_path / "out", []

    class Notes(surgeon.api.Progress):  # type: ignore[name-defined, misc]
        def note(self, text: str) -> None:
            notes.append(text)

    more = "variants:\n  second: {operations: [{zero: random}]}\n  third: {operations: [{zero: core}], write: patch}\n"
    surgeon.apply(light_recipe(**{"variants:\n": more}))
    assert (out / "variants" / "third.patch.safetensors").is_file()
    edited = out / "regions" / "bottom.region.safetensors"
    edited.write_bytes(edited.read_bytes() + b"changed by somebody")
    without_bottom = {
        "  bottom: {from: core, select: {bottom: 0.05}, exclude: [norm]}\n": "",
        "  control: {operations: [{zero: bottom}], write: false}\n": "",
        "random: {select: {random: 0.05, seed: 7}, exclude: [norm]}": "chance: {select: {random: 0.05, seed: 7}}",
    }
    surgeon.apply(light_recipe(**without_bottom), progress=Notes())
    assert sorted(path.name for path in (out / "variants").iterdir()) == ["cut", "second"]
    regions = sorted(path.name.partition(".")[0] for path in (out / "regions").iterdir())
    assert regions == ["bottom", "chance", "core"]  # `random` went, `bottom` is no longer surgeon's
    assert not any("random" in path.name for path in (out / "figures").iterdir())
    assert any("variants/second" in note and "earlier run" in note for note in notes)
    assert any("bottom.region.safetensors" in note for note in notes)
    outputs = json.loads((out / "manifest.json").read_text())["outputs"]
    assert not any(name.startswith("variants/second") for name in outputs)


LEFT = [
    ".report.json.4711.part", ".report.json.4711-0123abcd.part", "regions/.core.region.safetensors.1-0123abcd.part",
    "regions/.core.region.safetensors.1-0123abcd.part.body64", "variants/cut/.README.md.17.part",
    "variants/cut/figures/.perplexity.svg.17-00000000.part", "variants/.gone.staging/model.safetensors",
    "variants/.cut.old/model.safetensors",
]  # fmt: skip


def test_what_killed_runs_left_goes_with_the_next_run(light_recipe: RecipeMaker, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", Path(os.environ["SURGEON_CACHE"])
    surgeon.apply(light_recipe())
    before = tree(out)
    kept = ["variants/.mine", ".part", "notes.part", "variants/cut/.x.part", "..part"]
    for name in [*LEFT, *kept]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("left")
    for name in ("scores", "regions", "hashes"):
        (cache / name).mkdir(exist_ok=True)
        (cache / name / ".x.safetensors.9-89abcdef.part").write_text("full size")
    surgeon.apply(light_recipe())
    after = tree(out)
    assert not {*LEFT} & {*after}
    assert {*kept} <= {*after}
    assert not (out / "variants" / ".gone.staging").exists()
    assert not (out / "variants" / ".cut.old").exists()
    assert not list(cache.rglob("*.part"))
    same = {name for name in before if not name.startswith("report.") and name != "manifest.json"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


WRITES = """
import sys
from pathlib import Path
from numpy import zeros
from surgeon.checkpoint.storage import write_stream
from surgeon.inside import replacing
def pieces():
    yield "a", "U8", zeros(3, "u1")
    print(1, flush=True)
    sys.stdin.read()
    yield "a", "U8", zeros(3, "u1")
with replacing(Path(sys.argv[1])) as part:
    write_stream(part, pieces())
"""


@pytest.mark.parametrize("where", ["cache", "out"])
def test_what_another_process_is_writing_is_left_to_it(where: str, light_recipe: RecipeMaker, tmp_path: Path) -> None:
    folder = Path(os.environ["SURGEON_CACHE"]) / "regions" if where == "cache" else tmp_path / "out" / "own"
    ends = []
    for kill in (True, False):
        command = [sys.executable, "-c", WRITES, folder / "x.safetensors"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == b"1\n"
            surgeon.apply(light_recipe())  # begins, and ends, while the other one writes
            assert len(list(folder.glob("*.part"))) == len(list(folder.glob("*.body8"))) == 1
            if kill:
                process.kill()
            process.stdin.close()
            ends.append(process.wait())
        if kill:
            assert list(folder.glob(".x.*"))
            surgeon.apply(light_recipe())
            assert not list(folder.glob(".x.*"))
    assert ends == [-9, 0]
    assert [path.name for path in folder.glob("*x.*")] == ["x.safetensors"]


@pytest.mark.parametrize("reason", ["none", "taken"])
def test_a_lock_that_is_not_got_is_said_with_its_reason(
    reason: str, light_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:  # as a file system that is mounted without locks does
        raise BlockingIOError if reason == "taken" else OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = "another surgeon is writing here" if reason == "taken" else "gives no locks .No locks available.*--output"
    with pytest.raises(EnvironmentFailure, match=said):
        surgeon.apply(light_recipe())
    assert not (tmp_path / "out" / "regions").exists()


def test_an_older_variant_that_had_stepped_aside_gets_its_name_back(light_recipe: RecipeMaker, tmp_path: Path) -> None:
    surgeon.apply(light_recipe())
    variant = tmp_path / "out" / "variants" / "cut"
    before = tree(variant)
    os.rename(variant, variant.with_name(".cut.old"))  # killed between the two renames of a publication
    report = surgeon.apply(light_recipe())
    assert report.variants["cut"].reused
    assert tree(variant) == before


def test_staging_of_wanted_variants_stays(tmp_path: Path) -> None:
    for name in (".a.staging", ".b.staging"):
        (tmp_path / "variants" / name).mkdir(parents=True)
    clear_staging(tmp_path, ["a"])
    assert [path.name for path in (tmp_path / "variants").iterdir()] == [".a.staging"]


@pytest.mark.parametrize("kind", ["file", "below a file", "loop", "long", "long below"])
def test_an_output_that_can_be_no_folder_is_one_message(kind: str, light_recipe: RecipeMaker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    output = {
        "file": tmp_path / "file", "below a file": tmp_path / "file" / "out", "loop": tmp_path / "loop" / "out",
        "long": tmp_path / ("x" * 300), "long below": tmp_path / "a" / ("x" * 300) / "b",
    }[kind]  # fmt: skip
    result = surgeon_forked("apply", light_recipe(), "--output", output)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert (tmp_path / "file").read_text() == "x"
