"""Nothing outside the output folder and the cache is written or removed, whatever lies in that output folder.

Everything below a root is watched: another run's folder, the source, private files, temporary files. What somebody put
into the output folder leads to them, by links of every kind and by what its manifest says.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from forking import program_forked

import surgeon
from surgeon.errors import InputError

RecipeMaker = Callable[..., Path]
Seen = dict[str, tuple[object, ...]]
KINDS = ("absolute", "relative", "chain", "dangling", "loop")
PLACES = (
    ".surgeon.lock", "regions", "figures", "variants", "report.json", "report.html", "recipe.yaml", "manifest.json",
    "regions/core.region.safetensors", "variants/small.patch.safetensors", "variants/cut", "variants/cut/figures",
    "variants/cut/README.md", "variants/cut/model.safetensors", "variants/cut/surgeon.json", "variants/.cut.staging",
    "variants/.cut.old", "variants/.gone.staging", "variants/.gone.old",
)  # fmt: skip


RECIPE = """\
version: 1
name: watched
model: {root}/model
regions:
  core: {{score: {{kind: magnitude}}, select: {{top: 0.05}}}}
variants:
  cut: {{operations: [{{zero: core}}]}}
  small: {{operations: [{{zero: core}}], write: patch}}
output: {root}/out
"""


@dataclass
class World:
    """A root, and a run that may write into two folders of it: its output, and the cache."""

    root: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def secret(self) -> Path:
        return self.root / "victim" / "id_rsa"

    def begin(self) -> None:
        """Put a finished run into the output folder, and a new cache beside it."""
        for name in ("out", "victim"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            shutil.copytree(self.root.parent / name, self.root / name)

    def seen(self) -> Seen:
        """Everything below the root but for output and cache: kind and mode, inode, time of content, content."""
        found: Seen = {}
        for folder, folders, files in os.walk(self.root):
            if Path(folder) == self.root:
                folders[:] = [name for name in folders if name not in ("out", "cache")]
            for path in (Path(folder), *(Path(folder, name) for name in (*folders, *files))):
                said = path.lstat()
                what = os.readlink(path) if path.is_symlink() else None
                if stat.S_ISREG(said.st_mode):
                    what = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(self.root))] = (said.st_mode, said.st_ino, said.st_mtime_ns, what)
        return found

    def links(self) -> list[str]:
        """What lies in the output folder and is neither a file of its own nor a folder."""
        paths = ((path.relative_to(self.out).as_posix(), path.lstat()) for path in self.out.rglob("*"))
        return [n for n, s in paths if not (stat.S_ISDIR(s.st_mode) or (stat.S_ISREG(s.st_mode) and s.st_nlink == 1))]

    def apply(self, **settings: bool) -> str:
        """Run the recipe, and make sure that nothing else changed; returns the message with which it ended, if any."""
        before = self.seen()
        try:
            surgeon.apply(self.root / "recipe.yaml", **settings)
            said = ""
        except InputError as error:
            said = str(error)
        assert self.seen() == before
        return said


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root, whose parent holds what every test begins with."""
    root = tmp_path_factory.mktemp("watched") / "root"
    shutil.copytree(llama, root / "model")
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    victim = root.parent / "victim"
    (victim / "folder").mkdir(parents=True)
    for name in ("id_rsa", "surgeon.json", "core.region.safetensors", "folder/.x.1-0123abcd.part"):
        (victim / name).write_text("private " + name)
    surgeon.apply(root / "recipe.yaml")
    shutil.move(root / "out", root.parent / "out")
    # What an older run of another model would have left: the very files that a run takes up again, or clears away.
    for name in (".cut.staging", ".cut.old", ".gone.staging", ".gone.old", "cut"):
        shutil.copytree(root.parent / "out" / "variants" / "cut", victim / name)
    for name in ("home", "temporary", "cache"):
        (root / name).mkdir()
    return root


@pytest.fixture
def world(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("HOME", str(made / "home"))
    monkeypatch.setenv("TMPDIR", str(made / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    world = World(made)
    world.begin()
    yield world
    tempfile.tempdir = None


def put(kind: str, place: Path, target: Path) -> None:
    """Put a link of a kind in a place, instead of what is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "hard":
        os.link(target, place)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "loop":
        place.symlink_to(place)
    elif kind == "chain":
        place.with_name(f"{place.name}-1").symlink_to(target)
        place.symlink_to(f"{place.name}-1")
    else:
        where = {"absolute": target, "relative": os.path.relpath(target, place.parent), "dangling": target / "x" / "y"}
        place.symlink_to(where[kind])


@pytest.mark.parametrize("place", PLACES)
def test_a_link_in_the_output_is_not_followed(place: str, world: World) -> None:
    name = place.rpartition("/")[2]
    folder = place.endswith((".staging", ".old")) or "." not in name
    others = KINDS if folder else (*KINDS, "hard", "pipe")
    turn = PLACES.index(place)
    for kind in ("absolute", others[turn % len(others)], others[(turn + 3) % len(others)]):
        there = world.root / "victim" / name
        world.begin()
        target = there if there.exists() else world.root / "victim" / "folder"
        put(kind, world.out / place, target if folder else world.secret)
        said = world.apply()
        assert not said or (str(world.out) in said and ("remove it" in said or "choose another" in said)), said
        if said and kind != "hard":
            assert place in world.links()  # it is the user's to remove
        if not said:  # then what was written is what it says
            surgeon.api.check_files(world.out)


HOSTILE = (
    "{secret}", "../victim/id_rsa", "regions/../../victim/id_rsa", "link/id_rsa", "regions/id_rsa", "regions", ".ssh",
    "notes.txt", "variants/cut/mine.txt", "figures/x", "figures/link.svg", "variants/../../victim/id_rsa", "", ".",
    "a\0b",
)  # fmt: skip


@pytest.mark.parametrize("owner", ["watched", "another"])
def test_what_a_manifest_names_is_removed_only_if_a_run_could_have_made_it(owner: str, world: World) -> None:
    (world.out / "link").symlink_to(world.root / "victim")
    (world.out / "figures" / "link.svg").symlink_to(world.secret)
    mine = ["notes.txt", "regions/id_rsa", "variants/cut/mine.txt"]
    for name in mine:
        (world.out / name).write_text("private id_rsa")
    stale = world.out / "regions" / "stale.region.safetensors"
    stale.write_text("private id_rsa")  # what a run could have made goes, as it did before
    digest = hashlib.sha256(world.secret.read_bytes()).hexdigest()
    for part in ("outputs", "report"):
        shutil.copyfile(world.root.parent / "out" / "manifest.json", world.out / "manifest.json")
        found = json.loads((world.out / "manifest.json").read_text())
        found["name"] = owner
        found[part] |= {name.format(secret=world.secret): digest for name in HOSTILE}
        found[part]["regions/stale.region.safetensors"] = digest
        (world.out / "manifest.json").write_text(json.dumps(found))
        assert world.apply(overwrite=True) == ""
        assert [name for name in mine if not (world.out / name).exists()] == []
        assert (world.out / "figures" / "link.svg").is_symlink()
    assert not stale.exists()
    surgeon.api.check_files(world.out)


WITH_KILLS = """
import os, signal, sys
import surgeon.api, surgeon.inside as inside
rename, at = inside.rename, int(sys.argv[2])
def counted(source, target):
    global at
    at -= 1
    if at == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
inside.rename = counted
surgeon.api.apply(sys.argv[1])
"""


@pytest.mark.slow
def test_killed_and_repeated_runs_stay_inside_and_leave_nothing_behind(world: World) -> None:
    shutil.rmtree(world.out)
    world.out.mkdir()
    environment = {"SURGEON_CACHE": str(world.root / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    before, codes = world.seen(), []
    for at in (1, 4, 9, 15, 999):
        codes.append(program_forked(WITH_KILLS, world.root / "recipe.yaml", at, **environment).returncode)
        assert world.seen() == before
    assert codes == [-signal.SIGKILL] * 4 + [0]
    made = [*world.out.rglob(".*"), *(world.root / "cache").rglob(".*"), *(world.root / "cache").glob("scratch/*")]
    assert [path.name for path in made] == [".surgeon.lock"]
    there = lambda out: {p.relative_to(out).as_posix() for p in out.rglob("*")}  # noqa: E731
    assert there(world.out) == there(world.root.parent / "out")


CHANGING = {
    "unlink", "rmtree", "rmdir", "rename", "mkdir", "makedirs", "touch", "symlink_to", "write_text", "write_bytes",
}  # fmt: skip
# The output folder itself; drawings in the cache; a report that is saved where the caller says.
ELSEWHERE = {"output.mkdir", "file.unlink", "Path(path).write_text"}


def test_files_of_an_output_folder_are_changed_in_one_place() -> None:
    package, found = Path(surgeon.__file__).parent, []
    rooms = [file for room in ("write", "hub", "report") for file in (package / room).glob("*.py")]
    for path in [package / "run.py", *rooms]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            whose, what = ast.unparse(node.func.value), node.func.attr
            said = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
            opens = what == "open" and any(set("wax+") & set(mode) for mode in said)
            changes = what in CHANGING or opens or (whose == "os" and what in ("replace", "remove", "link", "symlink"))
            staged = whose in ("part", "staged") and what.startswith("write_")  # inside `replacing`
            if changes and whose != "inside" and not staged and f"{whose}.{what}" not in ELSEWHERE:
                found.append(f"{path.name}:{node.lineno}: {whose}.{what}")
    assert found == []
