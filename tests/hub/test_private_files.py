"""Private files do not travel: links, and what a stranger's manifest names, are neither sent nor copied."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from conftest import ModelMaker
from hub_server import LoopbackHub

import surgeon
from surgeon.cli import app
from surgeon.cli.talking import _serve
from surgeon.errors import CheckpointError, InputError
from surgeon.hub.parcel import pack, parcel_text
from surgeon.hub.push import Target, push
from surgeon.hub.rebuild import rebuild
from surgeon.progress import Progress

SECRET = "PRIVATE KEY 7f3a"
RECIPE = """\
version: 1
name: two
model: builtin:tiny30
regions:
  some: {select: {random: 0.001, seed: 1}, layers: [0, 0]}
variants:
  cut: {operations: [{zero: some}]}
  small: {operations: [{zero: some}], write: patch}
output: OUT
"""


class Notes(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output, and beside it `published`: what a push of its variant sends."""
    root = tmp_path_factory.mktemp("private")
    (root / "recipe.yaml").write_text(RECIPE.replace("OUT", str(root / "out")))
    surgeon.apply(root / "recipe.yaml")
    for item in pack(root / "out" / "variants" / "cut", "hf://org/x", weights=False).items:
        place = root / "published" / item.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(item.content if isinstance(item.content, bytes) else item.content.read_bytes())
    return root


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_text(SECRET)
    return tmp_path / "home" / "id_rsa"


def replaced(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "figures", "manifest.json", "surgeon.json"])
def test_what_is_published_is_a_file_of_the_variant_s_own(
    name: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = out / "variants" / "cut"
    if name == "figures":  # named by the manifest with its hash, so that only the link is wrong
        found = json.loads((out / "manifest.json").read_text())
        found["outputs"]["variants/cut/figures/x.svg"] = hashlib.sha256(SECRET.encode()).hexdigest()
        (out / "manifest.json").write_text(json.dumps(found))
    content = (variant / name).read_text() if (variant / name).is_file() else SECRET
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x.svg").write_text(SECRET if name in ("README.md", "figures") else content)
    replaced(variant / name, tmp_path / "home" if name == "figures" else tmp_path / "home" / "x.svg")
    with pytest.raises(CheckpointError, match="a link, and only files" if name != "manifest.json" else "manifest"):
        app(["push", str(variant), "org/x", "--dry-run"])
    assert SECRET not in "".join(capsys.readouterr())


def test_links_beside_a_variant_are_said_to_stay(out: Path, secret: Path) -> None:
    variant = out / "variants" / "cut"
    (variant / "notes.txt").symlink_to(secret)
    (variant / "more").symlink_to(secret.parent)
    parcel = pack(variant, "hf://org/x")
    assert set(parcel.left_behind) == {"more", "notes.txt"}
    assert "notes.txt (not written by surgeon)" in parcel_text(parcel, "hf://org/x")


@pytest.mark.parametrize("name", ["recipe.yaml", "manifest.json"])
def test_what_goes_with_a_patch_is_a_file_of_its_run(name: str, out: Path, tmp_path: Path) -> None:
    shutil.move(out / name, tmp_path / "elsewhere")
    (out / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{name}"):
        pack(out / "variants" / "small.patch.safetensors", "hf://org/x")


def test_a_label_of_a_region_names_no_file_elsewhere(out: Path, tmp_path: Path) -> None:
    variant = out / "variants" / "cut"
    shutil.copyfile(out / "regions" / "some.region.safetensors", tmp_path / "mine.region.safetensors")
    said = json.loads((variant / "surgeon.json").read_text())
    said["regions"]["../../mine"] = said["regions"]["some"]
    (variant / "surgeon.json").write_text(json.dumps(said))
    found = json.loads((out / "manifest.json").read_text())
    found["outputs"]["variants/cut/surgeon.json"] = hashlib.sha256((variant / "surgeon.json").read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(found))
    assert not any("mine" in item.path for item in pack(variant, "hf://org/x").items)


def test_rebuilding_copies_nothing_but_what_was_published(made: Path, secret: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(made / "published", folder)
    replaced(folder / "README.md", secret)
    (folder / "figures").symlink_to(secret.parent)
    (folder / "regions" / "id_rsa").symlink_to(secret)
    (folder / "regions" / "other.region.safetensors").symlink_to(secret)
    (folder / "regions" / "plain").write_text(SECRET)
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "surgeon.yaml").write_text("changed since")
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    hostile = ["regions/id_rsa", "regions/other.region.safetensors", "regions/plain", "figures/id_rsa", "regions"]
    hostile += [str(secret), "regions/../../home/id_rsa", "figures/../../home/id_rsa", ".eval_results/surgeon.yaml"]
    manifest["outputs"] |= dict.fromkeys(hostile, digest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    notes = Notes()
    written = rebuild(str(folder), tmp_path / "back", (), 1, notes)
    texts = {path.relative_to(written.path).as_posix(): path.read_bytes() for path in written.path.rglob("*.*")}
    assert not [name for name, data in texts.items() if SECRET.encode() in data and name != "manifest.json"]
    assert "regions/some.region.safetensors" in texts
    assert not {"README.md", ".eval_results/surgeon.yaml", "regions/plain"} & texts.keys()
    said = "\n".join(notes.said)
    for name in ("README.md", "regions/id_rsa", "regions/plain", "figures/id_rsa", ".eval_results/surgeon.yaml"):
        assert f"{folder / name}: " in said
    assert "left out" in said


def test_a_staged_folder_that_leads_elsewhere_is_not_written_to(made: Path, secret: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    first = rebuild(str(made / "published"), back, (), 1, Progress())
    staged = first.path.with_name(".cut.staging")
    first.path.rename(staged)
    for name in ("regions", "README.md"):
        replaced(staged / name, secret.parent if name == "regions" else secret)
    before = sorted(path.name for path in secret.parent.iterdir())
    with pytest.raises(InputError, match="regions: a link"):
        rebuild(str(made / "published"), back, (), 1, Progress())
    assert sorted(path.name for path in secret.parent.iterdir()) == before
    assert secret.read_text() == SECRET


def test_a_page_that_leads_elsewhere_is_not_served(out: Path, secret: Path) -> None:
    replaced(out / "report.html", secret)
    with pytest.raises(InputError, match="no page there"):
        _serve(None, out / "report.html", 0)  # type: ignore[arg-type]  # before anybody is asked


TELLING = "Wilhelmina-vs-Acme"
OWN = """\
version: 1
name: own
model: ROOT/model
corpus: {xx: ROOT/texts/xx.txt, yy: {file: ROOT/texts/yy.jsonl, name: Yyish}}
regions:
  top: {score: {kind: grad_param, languages: [xx], samples: 2, sequence_length: 16}, select: {top: 0.01}}
  saved: {file: ROOT/saved.region.safetensors}
variants:
  cut: {operations: [{zero: top}, {restore: saved, from: ROOT/donor}], freeze: saved}
verify: {languages: all, tokens: 32}
output: ROOT/out
"""


def test_no_byte_that_is_sent_tells_of_a_folder_of_this_machine(
    hub_here: LoopbackHub, make_model: ModelMaker, tmp_path: Path
) -> None:
    root = tmp_path / TELLING
    for name in ("model", "donor"):
        shutil.copytree(make_model("llama", seed=5 if name == "model" else 6), root / name)
    config = json.loads((root / "model" / "config.json").read_text())
    (root / "model" / "config.json").write_text(json.dumps({**config, "_name_or_path": str(root / "trained")}))
    (root / "texts").mkdir()
    lines = [f"Sentence {number} of a text that is long enough." for number in range(40)]
    (root / "texts" / "xx.txt").write_text("\n".join(lines))
    (root / "texts" / "yy.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    model = surgeon.Checkpoint.open(root / "model")
    name = next(name for name in model.tensors if "down_proj" in name)
    saved = surgeon.Region.from_masks({name: model.array(name) > 0}, {"model": str(root / "trained")})
    saved.save(root / "saved.region.safetensors")
    (root / "own.yaml").write_text(OWN.replace("ROOT", str(root)))
    surgeon.apply(root / "own.yaml")
    push(pack(root / "out" / "variants" / "cut", "hf://org/cut"), Target("org/cut"))
    there = hub_here.files("org/cut")
    assert {"freeze/region.safetensors", "regions/top.region.safetensors", "recipe.yaml"} <= there.keys()
    for path, data in there.items():
        assert TELLING.encode() not in data, path
    for path, digest in json.loads(there["surgeon.json"])["files"].items():
        assert hashlib.sha256(there[path]).hexdigest() == digest, path
    app(["report", str(root / "out"), "--space", str(tmp_path / "space")], standalone_mode=False)
    for file in (tmp_path / "space").rglob("*"):
        assert not file.is_file() or TELLING.encode() not in file.read_bytes(), file
