"""Variants go to the Hub and come back: the true client against a Hub on loopback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ModelMaker
from hub_server import TOKEN, LoopbackHub
from huggingface_hub import ModelCard, snapshot_download

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.hub_errors import explain
from surgeon.cli import app
from surgeon.errors import CheckpointError, EnvironmentFailure, InputError, RecipeError
from surgeon.hub.parcel import pack
from surgeon.hub.push import Target, push
from surgeon.hub.rebuild import rebuild
from surgeon.views.inspection import look_at

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


@pytest.fixture(scope="module")
def source(make_model: ModelMaker) -> Path:
    """A model in several shards, of which the variants leave some as they are."""
    return make_model("llama", shard="20KB", seed=5)


@pytest.fixture(scope="module")
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


def test_what_is_pushed_comes_back_byte_for_byte(hub_here: LoopbackHub, local_output: Path) -> None:
    variant = local_output / "variants" / "cut"
    pushed = send(variant)
    there = hub_here.files("org/cut")
    told_anew = ("README.md", "surgeon.json")  # with what only a push knows, and without this machine's folders
    assert {path: data for path, data in there.items() if path in files_of(variant) and path not in told_anew} == {
        path: data for path, data in files_of(variant).items() if path not in told_anew
    }
    assert set(there) - set(files_of(variant)) == {"manifest.json", "recipe.yaml", "regions/some.region.safetensors"}
    down = Path(snapshot_download("org/cut", revision=pushed.commit))
    assert {path: data for path, data in files_of(down).items() if path != ".gitattributes"} == there
    assert (
        surgeon.Checkpoint.open(f"hf://org/cut@{pushed.commit}").tensors.keys()
        == surgeon.Checkpoint.open(variant).tensors.keys()
    )
    manifest = json.loads(there["manifest.json"])
    assert set(manifest["outputs"]) == set(there) - {"README.md", "manifest.json"}
    assert yaml.safe_load(there["recipe.yaml"])["variants"].keys() == {"cut", "halved"}
    assert pushed.sent == len(there)
    again = send(variant)
    assert (again.sent, again.unchanged, again.commit) == (0, len(there), pushed.commit)


def test_an_interrupted_push_shows_nothing_and_resumes(hub_here: LoopbackHub, local_output: Path) -> None:
    variant = local_output / "variants" / "cut"
    hub_here.fail("PUT", "/lfs/", drop_after=2000, times=99, skip=3)
    with pytest.raises(EnvironmentFailure, match="same command resumes"):
        send(variant)
    assert hub_here.files("org/cut") == {}
    done = {seen.path for seen in hub_here.seen("PUT") if seen.status == 200}
    assert len(done) == 3
    hub_here.faults.clear()
    hub_here.requests.clear()
    send(variant)
    again = {seen.path for seen in hub_here.seen("PUT")}
    assert again
    assert not again & done
    assert hub_here.files("org/cut")["config.json"] == (variant / "config.json").read_bytes()
    for shard in variant.glob("*.safetensors"):
        assert hub_here.files("org/cut")[shard.name] == shard.read_bytes()


def test_the_client_itself_survives_one_fault(hub_here: LoopbackHub, local_output: Path) -> None:
    hub_here.fail("PUT", "/lfs/", drop_after=2000)
    hub_here.fail("POST", "/objects/batch", 503)
    hub_here.fail("POST", "/preupload/", 429)
    assert send(local_output / "variants" / "cut").sent


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "words"),
    [
        ("GET", "/api/models/org/cut$", 401, InputError, "hf auth login"),
        ("POST", "/api/repos/create", 403, InputError, "write access"),
        ("POST", "/commit/", 404, InputError, "check the name"),
        ("POST", "/commit/", 409, InputError, "conflicts"),
        ("POST", "/commit/", 412, InputError, "somebody else"),
        ("POST", "/preupload/", 429, EnvironmentFailure, "wait a few minutes"),
        ("POST", "/commit/", 500, EnvironmentFailure, "the Hub is in trouble"),
        ("PUT", "/lfs/", 503, EnvironmentFailure, "the same command resumes"),
        ("GET", "/tree/", 502, EnvironmentFailure, "the same command resumes"),
    ],
)
def test_each_fault_is_one_message_and_loses_nothing(
    hub_here: LoopbackHub, local_output: Path, method: str, path: str, status: int, kind: type[Exception], words: str
) -> None:
    variant = local_output / "variants" / "halved"
    if method == "GET" and status == 401:
        hub_here.add("org/cut", {})
    headers = {"X-Error-Message": "Invalid credentials in Authorization header"} if status == 401 else {}
    hub_here.fail(method, path, status, times=99, headers=headers, body=f"the server echoes {TOKEN} and more")
    with pytest.raises(kind, match=words) as caught:
        send(variant)
    message = str(caught.value)
    assert message.startswith("hf://org/cut: ")
    assert f"HTTP {status}" in message
    assert "\n" not in message
    assert TOKEN not in message
    assert caught.value.__suppress_context__
    hub_here.faults.clear()
    assert send(variant).sent
    assert "surgeon.json" in hub_here.files("org/cut")


def test_a_connection_that_breaks_at_the_commit_itself(hub_here: LoopbackHub, local_output: Path) -> None:
    hub_here.fail("POST", "/commit/", drop_after=100)
    with pytest.raises(EnvironmentFailure, match="connection to the Hub broke"):
        send(local_output / "variants" / "cut")
    assert hub_here.files("org/cut") == {}
    hub_here.requests.clear()
    send(local_output / "variants" / "cut")
    assert not hub_here.seen("PUT")  # everything large had arrived
    assert "surgeon.json" in hub_here.files("org/cut")


def test_wrong_and_missing_tokens(hub_here: LoopbackHub, local_output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongToken")
    with pytest.raises(InputError, match="hf auth login") as caught:
        send(local_output / "variants" / "cut")
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(InputError, match="hf auth login"):
        send(local_output / "variants" / "cut")


def test_branches_of_one_repository(hub_here: LoopbackHub, local_output: Path) -> None:
    for name in ("cut", "halved"):
        send(local_output / "variants" / name, "org/both", revision=name)
    assert hub_here.files("org/both") == {}
    for name in ("cut", "halved"):
        there = hub_here.files("org/both", name)
        assert json.loads(there["surgeon.json"])["variant"] == name
        assert f"surgeon apply hf://org/both@{name}".encode() in there["README.md"]
    sent = [seen.path for seen in hub_here.seen("PUT")]
    assert len(sent) == len(set(sent))  # shards that both have went up once


def test_a_pull_request_leaves_the_branch_alone(hub_here: LoopbackHub, local_output: Path) -> None:
    hub_here.add("org/theirs", {"config.json": b"{}", "model.safetensors": b"theirs"})
    pushed = send(local_output / "variants" / "cut", "org/theirs", create_pr=True)
    assert pushed.url.endswith("/org/theirs/discussions/1")
    assert hub_here.files("org/theirs")["model.safetensors"] == b"theirs"
    assert "surgeon.json" in hub_here.files("org/theirs", "refs/pr/1")
    again = send(local_output / "variants" / "cut", "org/theirs", create_pr=True)
    assert (again.sent, again.url) == (0, pushed.url)  # one proposal is enough
    send(local_output / "variants" / "halved", "org/theirs", create_pr=True)
    assert "refs/pr/2" in hub_here.repos["models/org/theirs"].refs
    with pytest.raises(InputError, match="check the name"):
        send(local_output / "variants" / "cut", "org/nobody", create_pr=True)


def test_another_model_is_not_overwritten(hub_here: LoopbackHub, local_output: Path) -> None:
    hub_here.add("org/theirs", {"model.safetensors": b"theirs"})
    with pytest.raises(InputError, match=r"did not push \(model.safetensors\)"):
        send(local_output / "variants" / "cut", "org/theirs")
    assert hub_here.files("org/theirs") == {"model.safetensors": b"theirs"}
    hub_here.fail("POST", "/commit/", 500, times=99)
    for _ in range(2):  # the branch is there when the push is tried again, and is still main's copy
        with pytest.raises(EnvironmentFailure):
            send(local_output / "variants" / "cut", "org/theirs", revision="cut")


def test_a_published_variant_is_held_against_its_marker(hub_here: LoopbackHub, local_output: Path) -> None:
    variant = local_output / "variants" / "cut"
    send(variant)
    assert surgeon.api.check_files("hf://org/cut") >= 4
    shard = next(variant.glob("model-*.safetensors")).name
    data = bytearray(hub_here.files("org/cut")[shard])
    data[-1] ^= 1
    hub_here.add("org/cut", {shard: bytes(data)})
    with pytest.raises(CheckpointError, match=f"{shard}: not the file that was written"):
        surgeon.api.check_files("hf://org/cut")


def test_private_is_private(hub_here: LoopbackHub, local_output: Path) -> None:
    send(local_output / "variants" / "cut", "org/secret", private=True)
    assert hub_here.repos["models/org/secret"].private
    hub_here.add("org/open", {})
    with pytest.raises(InputError, match="is public"):
        send(local_output / "variants" / "cut", "org/open", private=True)


def test_a_second_push_removes_what_the_first_one_left(hub_here: LoopbackHub, local_output: Path, llama: Path) -> None:
    send(local_output / "variants" / "cut", "org/one")
    hub_here.add("org/one", {"NOTES.md": b"written by hand"})
    root = local_output.parent / "single"
    root.mkdir()
    one = apply_recipe(root, str(llama))  # a single file instead of shards
    pushed = send(one / "variants" / "halved", "org/one")
    there = hub_here.files("org/one")
    assert pushed.removed
    assert {path for path in there if path.endswith(".safetensors")} == {
        "model.safetensors", "regions/others.region.safetensors",
    }  # fmt: skip
    assert there["NOTES.md"] == b"written by hand"


def test_untouched_shards_are_copied_by_the_hub(hub_here: LoopbackHub, hub_output: Path, source: Path) -> None:
    variant = hub_output / "variants" / "cut"
    same = {p.name for p in source.glob("*.safetensors") if p.read_bytes() == (variant / p.name).read_bytes()}
    assert same
    pushed = send(variant)
    assert pushed.copied == len(same)
    sent = {seen.path.rpartition("/")[2] for seen in hub_here.seen("PUT")}
    repo = hub_here.repos["models/org/cut"]
    tree = repo.commits[repo.refs["main"]]
    assert not sent & {tree[name].sha256 for name in same}
    for shard in variant.glob("*.safetensors"):
        assert tree[shard.name].data == shard.read_bytes()
    hub_here.fail("POST", "lfs-files/duplicate", 400, times=99)  # as between storage regions
    elsewhere = send(variant, "org/elsewhere")
    assert elsewhere.copied == 0
    assert hub_here.files("org/elsewhere").keys() == hub_here.files("org/cut").keys()


def test_damage_is_found_before_anything_is_sent(hub_here: LoopbackHub, source: Path, tmp_path: Path) -> None:
    variant = apply_recipe(tmp_path, str(source)) / "variants" / "cut"
    (variant / "README.md").write_text("---\nlicense: mit\n---\n# My own words\n")
    (variant / "LICENSE").write_text("mine")
    send(variant, "org/mine")  # the card is the user's to edit; files of their own stay where they are
    assert "LICENSE" not in hub_here.files("org/mine")
    assert pack(variant, "hf://org/mine").left_behind == ("LICENSE",)
    shard = next(variant.glob("model-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    hub_here.requests.clear()
    with pytest.raises(CheckpointError, match=f"{shard.name}: not the file that was written"):
        send(variant)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: missing"):
        send(variant)
    with pytest.raises(InputError, match="not a variant"):
        send(source)
    assert not hub_here.requests


def test_a_variant_away_from_its_manifest_is_refused(local_output: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(local_output / "variants" / "cut", tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"no manifest.json of the run"):
        pack(moved, "hf://org/moved")
    shutil.copy(local_output / "manifest.json", tmp_path)  # whole, as the run left it
    (tmp_path / "variants").mkdir()
    assert pack(moved.rename(tmp_path / "variants" / "cut"), "hf://org/moved").items


def test_a_variant_without_weights_says_how_to_make_them(
    hub_here: LoopbackHub, hub_output: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = Target("org/light")
    push(pack(hub_output / "variants" / "cut", target.address, weights=False), target)
    for name in ("hf://org/light", "org/light"):
        with pytest.raises(CheckpointError, match="without its weights; `surgeon apply hf://org/light` makes them"):
            surgeon.Checkpoint.open(name)
    capfd.readouterr()
    main(["apply", "hf://org/light", "--output", str(tmp_path / "back")])
    assert "Fetching" not in capfd.readouterr().err


def test_damage_on_the_way_is_found_after(hub_here: LoopbackHub, local_output: Path) -> None:
    class Careless(dict):  # type: ignore[type-arg]
        def __setitem__(self, key: str, value: bytes) -> None:
            super().__setitem__(key, value[:-1] + bytes([value[-1] ^ 1]))

    hub_here.objects = Careless()
    with pytest.raises(EnvironmentFailure, match="did not arrive as it was sent"):
        send(local_output / "variants" / "cut")


def test_without_weights_and_back(hub_here: LoopbackHub, hub_output: Path, tmp_path: Path) -> None:
    variant = hub_output / "variants" / "cut"
    target = Target("org/light")
    push(pack(variant, target.address, weights=False), target)
    there = hub_here.files("org/light")
    assert set(there) == {
        "README.md", "manifest.json", "recipe.yaml", "regions/some.region.safetensors", "surgeon.json",
    }  # fmt: skip
    assert b"holds no weights" in there["README.md"]
    main(["apply", "hf://org/light", "--output", str(tmp_path / "back")])
    back = tmp_path / "back" / "variants" / "cut"
    for path, data in files_of(variant).items():
        if path not in ("README.md", "surgeon.json"):
            assert (back / path).read_bytes() == data, path
    for path in ("README.md", "surgeon.json"):
        assert (back / path).read_bytes() == there[path]
    push(pack(back, "hf://org/again"), Target("org/again"))  # what came back is complete
    local = tmp_path / "local"
    for path, data in there.items():
        (local / path).parent.mkdir(parents=True, exist_ok=True)
        (local / path).write_bytes(data)
    main(["apply", str(local), "--output", str(tmp_path / "third")])
    assert files_of(tmp_path / "third" / "variants" / "cut").keys() == files_of(back).keys()


def test_a_freeze_bundle_without_weights_and_back(hub_here: LoopbackHub, source: Path, tmp_path: Path) -> None:
    hub_here.add_folder("org/source", source)
    (tmp_path / "kept.yaml").write_text(
        RECIPE.replace("MODEL", "hf://org/source").replace("OUT", str(tmp_path / "kept"))
        + "push: {repo: org/kept, variants: [cut], weights: false}\n"
    )
    surgeon.apply(tmp_path / "kept.yaml", overrides=["variants.cut.freeze=others"])
    assert not any(path.startswith("freeze/") for path in hub_here.files("org/kept"))
    rebuild("hf://org/kept", tmp_path / "back", (), 2, surgeon.progress.Progress())
    before, after = (files_of(tmp_path / root / "variants" / "cut") for root in ("kept", "back"))
    bundle = {path for path in before if path.startswith("freeze/")}
    assert bundle
    for path in bundle | {path for path in before if path.endswith(".safetensors")}:
        assert after[path] == before[path], path


def test_inspect_shows_a_bundle_on_the_hub(hub_here: LoopbackHub, source: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.yaml").write_text(RECIPE.replace("MODEL", str(source)).replace("OUT", str(tmp_path / "kept")))
    surgeon.apply(tmp_path / "kept.yaml", overrides=["variants.cut.freeze=others"])
    folder = tmp_path / "kept" / "variants" / "cut"
    push(pack(folder, "hf://org/kept"), Target("org/kept"))
    assert look_at("hf://org/kept")["frozen"] == look_at(str(folder))["frozen"]
    assert not list(Checkpoint.open("hf://org/kept").source.path.glob("*.safetensors"))  # the weights stay there


def test_a_rebuilt_variant_is_that_variant_or_none(
    hub_here: LoopbackHub, hub_output: Path, tmp_path: Path, llama: Path
) -> None:
    parcel = pack(hub_output / "variants" / "cut", "hf://org/light", weights=False)
    folder = tmp_path / "light"
    for item in parcel.items:
        (folder / item.path).parent.mkdir(parents=True, exist_ok=True)
        data = item.content if isinstance(item.content, bytes) else item.content.read_bytes()
        (folder / item.path).write_bytes(data)

    def attempt(*overrides: str) -> None:
        rebuild(str(folder), tmp_path / "new", overrides, 2, surgeon.progress.Progress())

    with pytest.raises(CheckpointError, match="not the model that"):
        attempt(f"model={llama}")
    with pytest.raises(InputError, match="only `model=SOURCE`"):
        attempt("output=x")
    manifest = json.loads((folder / "manifest.json").read_text())
    name = next(name for name in manifest["outputs"] if re.fullmatch(r"model-.*safetensors", name))
    broken = {**manifest, "outputs": {**manifest["outputs"], name: "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps(broken))
    with pytest.raises(CheckpointError, match="came out other than its manifest says"):
        attempt()
    assert not list((tmp_path / "new" / "variants").iterdir())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    region = folder / "regions" / "some.region.safetensors"
    region.write_bytes((hub_output / "regions" / "others.region.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="not the region"):
        attempt()


def test_only_what_others_can_rebuild_goes_without_weights(hub_here: LoopbackHub, local_output: Path) -> None:
    with pytest.raises(InputError, match="which others do not have"):
        pack(local_output / "variants" / "cut", "hf://org/x", weights=False)
    card = pack(local_output / "variants" / "cut", "hf://org/x").card
    assert "surgeon apply hf://org/x --set model=SOURCE" in card


def test_a_recipe_pushes_its_variants(hub_here: LoopbackHub, source: Path, tmp_path: Path) -> None:
    hub_here.add_folder("org/source", source)
    path = tmp_path / "two.yaml"
    text = RECIPE.replace("MODEL", "hf://org/source").replace("OUT", str(tmp_path / "two"))
    path.write_text(text + "push:\n  repo: org/two-{variant}\n  weights: false\n")
    report = surgeon.apply(path)
    assert {name: item.address for name, item in report.pushed.items()} == {
        "cut": "hf://org/two-cut", "halved": "hf://org/two-halved",
    }  # fmt: skip
    assert "model.safetensors.index.json" not in hub_here.files("org/two-cut")
    assert json.loads((tmp_path / "two" / "report.json").read_text())["pushed"].keys() == {"cut", "halved"}
    path.write_text(text + 'push: {repo: org/two, revision: "{variant}", variants: [cut]}\n')
    report = surgeon.apply(path, push=True)
    assert report.variants["cut"].reused  # where it goes makes it no other variant
    assert "model.safetensors.index.json" in hub_here.files("org/two", "cut")
    hub_here.requests.clear()
    assert surgeon.apply(path, push=False).pushed == {}
    assert not [seen for seen in hub_here.requests if seen.method in ("POST", "PUT")]
    path.write_text(text)
    with pytest.raises(InputError, match=r"--set push\.repo=org/name"):
        surgeon.apply(path, push=True)


@pytest.mark.parametrize(
    ("spec", "line", "words"),
    [
        ("push: {repo: org/x}", 11, "one place"),
        ("push: {repo: x, variants: [cut]}", 11, "the form org/name"),
        ("push: {repo: org/x, variants: [cat]}", 11, "did you mean 'cut'"),
        ("push: {repo: org/x, variants: [cut], revision: {variant}}", 11, "put quotes around it"),
        ("push: {repo: org/x, token: hf_secret}", 11, "unknown key 'token'"),
    ],
)
def test_mistakes_in_a_recipe_s_push(source: Path, tmp_path: Path, spec: str, line: int, words: str) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(RECIPE.replace("MODEL", str(source)).replace("OUT", str(tmp_path / "two")) + spec + "\n")
    with pytest.raises(RecipeError, match=words) as caught:
        surgeon.api.plan_recipe(path)
    assert caught.value.problems[0].where == f"{path}:{line}"


def main(arguments: list[str]) -> None:
    app(arguments, standalone_mode=False)


def test_a_dry_run_contacts_nobody(
    hub_here: LoopbackHub, local_output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = local_output / "variants" / "cut"
    main(["push", str(variant), "org/cut", "--dry-run"])
    shown = capsys.readouterr().out
    for path in [*files_of(variant), "recipe.yaml", "regions/some.region.safetensors"]:
        assert path in shown
    assert "damaged on purpose" in shown
    assert "the card names no licence" in shown
    assert "the card names no base model" in shown
    main(["push", str(variant), "org/cut", "--dry-run", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["bytes"] == sum(entry["bytes"] for entry in data["files"].values())
    assert not hub_here.requests


def test_the_command_line_as_users_run_it(
    hub: LoopbackHub, surgeon_on_hub: Callable[..., subprocess.CompletedProcess[str]], local_output: Path
) -> None:
    variant = local_output / "variants" / "cut"
    hub.fail("PUT", "/lfs/", drop_after=100, times=99, skip=1)
    broken = surgeon_on_hub("push", variant, "org/cut", "--private")
    assert broken.returncode == 3
    hub.faults.clear()
    echo = json.dumps({"warnings": [{"message": f"you sent {TOKEN}"}], "errors": []})
    hub.fail("POST", "/api/validate-yaml", 200, body=echo, headers={"X-HF-Warning": f"token; {TOKEN} is old"})
    done = surgeon_on_hub("push", variant, "org/cut", "--private")
    assert done.returncode == 0, done.stderr
    assert f"{hub.endpoint}/org/cut/commit/" in done.stdout
    for word in ("cut", "org/cut/x"):
        assert surgeon_on_hub("push", variant, word).returncode == 2
    for output in (broken.stdout, broken.stderr, done.stdout, done.stderr):
        assert TOKEN not in output
        assert "Traceback" not in output
    assert not any(TOKEN.encode() in data for data in hub.files("org/cut").values())


def test_the_login_of_the_hub_s_own_client_is_used(
    hub: LoopbackHub,
    surgeon_on_hub: Callable[..., subprocess.CompletedProcess[str]],
    local_output: Path,
    tmp_path: Path,
) -> None:
    variant = local_output / "variants" / "cut"
    assert "hf auth login" in surgeon_on_hub("push", variant, "org/cut", token=None).stderr
    environment = hub.environment(tmp_path / "hf_home", token=None)
    client = [sys.executable, "-m", "huggingface_hub.cli.hf", "auth"]
    subprocess.run([*client, "login", "--token", TOKEN], env=environment, check=True, capture_output=True)
    who = subprocess.run([*client, "whoami"], env=environment, check=True, capture_output=True, text=True)
    assert "tester" in who.stdout
    done = surgeon_on_hub("push", variant, "org/cut", token=None)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_the_recipes_of_the_page_on_the_hub_can_be_planned(source: Path, tmp_path: Path) -> None:
    """Its commands are run with those of all pages."""
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    recipe = RECIPE.replace("MODEL", str(source)).replace("OUT", "out").replace("cut:", "core-zeroed:")
    sections = re.findall(r"```yaml\n(push:.*?)```", page, re.DOTALL)
    assert len(sections) == 3
    for section in sections:
        (tmp_path / "one.yaml").write_text(recipe + section)
        surgeon.api.plan_recipe(tmp_path / "one.yaml", overrides=["push.variants=[core-zeroed]"])


def test_the_card_on_the_hub_is_one(hub_here: LoopbackHub, hub_output: Path) -> None:
    send(hub_output / "variants" / "cut")
    card = ModelCard(hub_here.files("org/cut")["README.md"].decode())
    assert card.data.base_model == "org/source"
    assert card.data.get("base_model_relation") == "finetune"
    assert (card.data.license, card.data.language) == ("apache-2.0", ["de", "no"])
    assert "surgeon apply hf://org/cut\n" in card.text


def test_errors_that_are_not_the_hub_s_stay_what_they_are() -> None:
    assert explain(ValueError("a bug"), "x") is None
    assert explain(KeyError("a bug"), "x") is None
