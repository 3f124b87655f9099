"""Variants go to the Hub, whole or not at all: the true client against a Hub on loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, LoopbackHub
from huggingface_hub import ModelCard, snapshot_download
from pushing import apply_recipe, files_of, send

import surgeon
from surgeon.checkpoint.hub import explain
from surgeon.errors import CheckpointError, EnvironmentFailure, InputError
from surgeon.hub.parcel import pack

pytest_plugins = ["pushing"]


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


def test_damage_on_the_way_is_found_after(hub_here: LoopbackHub, local_output: Path) -> None:
    class Careless(dict):  # type: ignore[type-arg]
        def __setitem__(self, key: str, value: bytes) -> None:
            super().__setitem__(key, value[:-1] + bytes([value[-1] ^ 1]))

    hub_here.objects = Careless()
    with pytest.raises(EnvironmentFailure, match="did not arrive as it was sent"):
        send(local_output / "variants" / "cut")


def test_only_what_others_can_rebuild_goes_without_weights(hub_here: LoopbackHub, local_output: Path) -> None:
    with pytest.raises(InputError, match="which others do not have"):
        pack(local_output / "variants" / "cut", "hf://org/x", weights=False)
    card = pack(local_output / "variants" / "cut", "hf://org/x").card
    assert "surgeon apply hf://org/x --set model=SOURCE" in card


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
