"""The loopback Hub is one for the true client: what goes up comes down again, in every way the client knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import LoopbackHub
from huggingface_hub import (
    CommitOperationCopy,
    HfApi,
    HfFileSystem,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import get_session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "config.json").write_text('{"a": 1}')
    (root / "README.md").write_text("---\nlicense: mit\n---\n# Hello\n")
    (root / "deep" / "er" / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    return root


def contents(root: Path) -> dict[str, bytes]:
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    return {path: data for path, data in files.items() if path != ".gitattributes" and ".cache" not in path}


def test_a_folder_goes_up_and_comes_down(hub_here: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    api = HfApi()
    assert api.whoami()["name"] == "tester"
    api.create_repo("org/model", exist_ok=True)
    api.create_repo("org/model", exist_ok=True)
    commit = api.upload_folder(repo_id="org/model", folder_path=folder)
    assert contents(Path(snapshot_download("org/model"))) == contents(folder) == hub_here.files("org/model")
    assert contents(Path(snapshot_download("org/model", local_dir=tmp_path / "down"))) == contents(folder)
    info = api.model_info("org/model", files_metadata=True)
    assert info.sha == commit.oid
    assert {s.rfilename for s in info.siblings or ()} == {*contents(folder), ".gitattributes"}
    tree = list(api.list_repo_tree("org/model", recursive=True))
    assert {entry.path for entry in tree} == {*contents(folder), ".gitattributes", "deep", "deep/er"}
    assert [entry.path for entry in api.list_repo_tree("org/model", "deep")] == ["deep/er"]


def test_lfs_files_are_sent_once(hub_here: LoopbackHub, folder: Path) -> None:
    api = HfApi()
    api.create_repo("org/model")
    first = api.upload_folder(repo_id="org/model", folder_path=folder)
    (folder / "config.json").write_text('{"a": 2}')
    second = api.upload_folder(repo_id="org/model", folder_path=folder)
    assert first.oid != second.oid
    assert len(hub_here.seen("PUT")) == 1
    assert hub_here.files("org/model", first.oid)["config.json"] == b'{"a": 1}'


def test_branches_and_pull_requests(hub_here: LoopbackHub, folder: Path) -> None:
    api = HfApi()
    hub_here.add("org/model", {"a.txt": b"a"})
    api.create_branch("org/model", branch="side/one")
    api.upload_folder(repo_id="org/model", folder_path=folder, revision="side/one")
    assert hub_here.files("org/model") == {"a.txt": b"a"}
    pulled = Path(snapshot_download("org/model", revision="side/one"))
    assert contents(pulled) == {"a.txt": b"a", **contents(folder)}
    request = api.upload_folder(repo_id="org/model", folder_path=folder, create_pr=True)
    assert request.pr_revision == "refs/pr/1"
    assert contents(Path(snapshot_download("org/model", revision="refs/pr/1"))) == contents(pulled)
    refs = api.list_repo_refs("org/model", include_pull_requests=True)
    assert {branch.name for branch in refs.branches} == {"main", "side/one"}
    assert [pull.ref for pull in refs.pull_requests or ()] == ["refs/pr/1"]


def test_lfs_files_are_copied_from_one_repository_to_another(hub_here: LoopbackHub) -> None:
    hub_here.add("org/source", {"model.safetensors": b"weights"})
    hub_here.add("org/target", {})
    copy = CommitOperationCopy("model.safetensors", "w.safetensors", src_repo_id="org/source", src_repo_type="model")
    HfApi().create_commit("org/target", [copy], commit_message="copy")
    assert hub_here.files("org/target") == {"w.safetensors": b"weights"}
    assert not hub_here.seen("PUT")


def test_ranges(hub_here: LoopbackHub) -> None:
    data = bytes(range(256)) * 100
    hub_here.add("org/model", {"w.safetensors": data, "a.json": data})
    for name in ("w.safetensors", "a.json"):
        url = f"{hub_here.endpoint}/org/model/resolve/main/{name}"
        for asked, expected in (("0-7", data[:8]), ("100-", data[100:]), ("-5", data[-5:]), ("9-99999999", data[9:])):
            answer = get_session().get(url, headers={"Range": f"bytes={asked}"}, follow_redirects=True)
            assert answer.status_code == 206
            assert answer.content == expected
            assert hub_here.requests[-1].sent == len(expected)
        assert get_session().get(url, headers={"Range": "bytes=99999999-"}, follow_redirects=True).status_code == 416
    with HfFileSystem().open("org/model/w.safetensors", block_size=64) as file:
        file.seek(1000)
        assert file.read(10) == data[1000:1010]


def test_datasets_are_served_too(hub_here: LoopbackHub) -> None:
    hub_here.add("org/texts", {"data/train.txt": b"one\ntwo\n"}, kind="datasets")
    files = HfFileSystem()
    assert files.glob("datasets/org/texts/**/*.txt") == ["datasets/org/texts/data/train.txt"]
    assert files.cat("datasets/org/texts/data/train.txt") == b"one\ntwo\n"
    path = hf_hub_download("org/texts", "data/train.txt", repo_type="dataset")
    assert Path(path).read_bytes() == b"one\ntwo\n"


def test_private_and_missing_repositories(hub_here: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_here.add("org/secret", {"a.txt": b"a"}, private=True)
    assert HfApi().model_info("org/secret").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info("org/secret")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("org/none")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("org/secret", "none.txt")
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(token="hf_wrong").whoami()
    assert caught.value.response.status_code == 401


def test_faults_strike_the_requests_they_name(
    hub_here: LoopbackHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what came before the fault is kept in such pieces
    api = HfApi()
    api.create_repo("org/model")
    hub_here.fail("PUT", "/lfs/", drop_after=1000)
    hub_here.fail("PUT", "/lfs/", 503)
    api.upload_folder(repo_id="org/model", folder_path=folder)  # the client tries again by itself
    assert [seen.received for seen in hub_here.seen("PUT")] == [1000, 1_024_000, 1_024_000]
    hub_here.fail("GET", "/cdn/.*safetensors", drop_after=5000)
    down = snapshot_download("org/model", local_dir=tmp_path / "down")
    assert contents(Path(down)) == contents(folder)
    parts = hub_here.seen("GET", "/cdn/.*safetensors")
    assert [seen.sent for seen in parts] == [5000, 1_019_000]
    assert parts[1].range == "bytes=5000-"
    hub_here.fail("GET", "/api/models/org/model$", 418, body="<teapot>")
    with pytest.raises(HfHubHTTPError, match="418"):
        api.model_info("org/model")
