"""A Hub that lies, or never ends: what it answers is held against what it said, within bounds, and told in one line."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, LoopbackHub

from surgeon.checkpoint import hub
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.sources import local_file
from surgeon.errors import EnvironmentFailure, SurgeonError
from surgeon.freeze.bundle import Bundle

SHARD = "model.safetensors"


@pytest.fixture
def model(hub_here: LoopbackHub, llama: Path) -> str:
    hub_here.add_folder("org/model", llama)
    hub_here.add("org/other", {"some.xyz": b"some"})
    return "hf://org/model"


def everything(folder: Path) -> dict[str, bytes]:
    """All plain files below a folder, wherever the cache puts them."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def failure(read: Callable[[], Any], code: int = 3) -> str:
    """Return the one line that a read ends with."""
    with pytest.raises(SurgeonError) as caught:
        read()
    text = str(caught.value)
    assert caught.value.exit_code == code, text
    assert "\n" not in text
    assert TOKEN not in text
    return text


@pytest.mark.parametrize("said", ["bytes {0}-{1}/1", "bytes 1-{1}/{2}", "bytes {0}-{2}/{2}", "bytes */5", "8-9", ""])
def test_other_bytes_than_were_asked_for(said: str, model: str, hub_here: LoopbackHub) -> None:
    checkpoint = Checkpoint.open(model)
    name = next(iter(checkpoint.tensors))
    info, size = checkpoint.tensors[name], len(hub_here.files("org/model")[SHARD])
    value = said.format(info.offset, info.offset + info.nbytes - 1, size)
    hub_here.fail("GET", "/cdn/", times=float("inf"), headers={"Content-Range": value})
    assert "the Hub sent others" in failure(lambda: checkpoint.array(name))


def test_a_shard_that_is_not_the_one_that_was_named(model: str, hub_here: LoopbackHub, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(model)
    true = hub_here.files("org/model")[SHARD]
    hub_here.fail("GET", "/cdn/", content=true[:-1] + bytes([true[-1] ^ 1]))
    assert f"{SHARD}: what came is not the file that the Hub named" in failure(checkpoint.downloaded)
    assert not any(data[:-1] == true[:-1] for data in everything(tmp_path / "hub_cache").values())
    again = Checkpoint.open(model).downloaded()  # nothing of it was believed later
    assert (again.folder / SHARD).read_bytes() == true


def test_a_shard_of_another_name_than_was_listed(model: str, hub_here: LoopbackHub, tmp_path: Path) -> None:
    """The answer agrees with itself, but not with the list of files that the plan was made of."""
    checkpoint = Checkpoint.open(model)
    true = hub_here.files("org/model")[SHARD]
    other = true[:-1] + bytes([true[-1] ^ 1])
    digest = hashlib.sha256(other).hexdigest()
    hub_here.fail("HEAD", "/resolve/.*safetensors", headers={"X-Linked-Etag": f'"{digest}"'}, times=float("inf"))
    hub_here.fail("GET", "/cdn/", content=other, times=float("inf"))
    assert "what came is not the file that the Hub named" in failure(checkpoint.downloaded)
    assert other not in everything(tmp_path / "hub_cache").values()


@pytest.mark.parametrize("name", ["config.json", "region.safetensors"])
def test_a_small_file_that_is_not_the_one_that_was_named(name: str, hub_here: LoopbackHub, tmp_path: Path) -> None:
    hub_here.add("org/one", {name: b'{"a": 1}'})
    hub_here.fail("GET", "/cdn/" if name.endswith("safetensors") else "/resolve/", content=b'{"a": 2}')
    assert "what came is not the file that the Hub named" in failure(lambda: local_file(f"hf://org/one/{name}"))
    assert b'{"a": 2}' not in everything(tmp_path / "hub_cache").values()


def test_a_bundle_that_is_not_the_one_that_was_named(hub_here: LoopbackHub) -> None:
    hub_here.add("org/bundle", {"freeze/freeze.json": b'{"a": 1}'})
    hub_here.fail("GET", "/resolve/", content=b'{"a": 2}', times=float("inf"))
    assert "what came is not the file that the Hub named" in failure(lambda: Bundle.load("org/bundle"))


@pytest.mark.parametrize("tag", ["../../../../out", "a/b", "..", "", "x" * 250, "/tmp/out", "..\\out"])
@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
def test_names_lead_nowhere_out_of_the_cache(
    header: str, tag: str, model: str, hub_here: LoopbackHub, tmp_path: Path
) -> None:
    before = {path for path in tmp_path.rglob("*") if "hub_cache" not in path.parts}
    hub_here.fail("HEAD", "/resolve/", headers={header: f'"{tag}"' if header != "X-Repo-Commit" else tag},
                  times=float("inf"))  # fmt: skip
    assert "cannot name a file" in failure(lambda: Checkpoint.open(model))
    assert {path for path in tmp_path.rglob("*") if "hub_cache" not in path.parts} == before
    assert everything(tmp_path / "hub_cache") == {} if (tmp_path / "hub_cache").exists() else True


def test_a_body_that_drips_is_given_up(model: str, hub_here: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.4)
    checkpoint = Checkpoint.open(model)
    name = next(iter(checkpoint.tensors))
    for path, read in (
        ("/cdn/", lambda: checkpoint.array(name)),
        ("/cdn/", checkpoint.downloaded),
        ("^/api/models", lambda: Checkpoint.open(model)),
        ("/resolve/", lambda: local_file("hf://org/other/some.xyz")),
    ):
        hub_here.fail("GET", path, drip=0.05, times=float("inf"))
        began = time.monotonic()
        assert "bytes a second, which is given up" in failure(read)
        assert time.monotonic() - began < 5
        hub_here.faults.clear()


ANSWERS: dict[str, Any] = {
    "no JSON": b"<html>hello</html>",
    "half of it": b'{"id": "org/model", "sha": "ab',
    "a list": b"[]",
    "a number": b"7",
    "nothing": b"",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "no text": b"\xff\xfe\x00",
    "no commit": {"sha": None},
    "another commit": {"sha": "../../x"},
    "files in a row": {"siblings": 3},
    "files without names": {"siblings": [{"size": 3}]},
    "a name that leads out": {"siblings": [{"rfilename": "../../x.safetensors", "size": 3}]},
    "a name that is none": {"siblings": [{"rfilename": 3, "size": 3}]},
    "a size that is none": {"siblings": [{"rfilename": "model.safetensors", "size": "many"}]},
    "less than nothing": {"siblings": [{"rfilename": "model.safetensors", "size": -1}]},
    "a hash that is none": {"siblings": [{"rfilename": "a", "size": 3, "lfs": {"sha256": 3, "size": 1}}]},
    "lfs that is none": {"siblings": [{"rfilename": "a", "size": 3, "lfs": 3}]},
    "a time that is none": {"lastModified": "yesterday"},
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_makes_no_sense(answer: str, model: str, hub_here: LoopbackHub) -> None:
    body = ANSWERS[answer]
    if isinstance(body, dict):
        commit = hub_here.repos["models/org/model"].refs["main"]
        body = json.dumps({"id": "org/model", "sha": commit, "siblings": [], "tags": [], **body}).encode()
    hub_here.fail("GET", "^/api/models", content=body, times=float("inf"))
    assert "the Hub's" in failure(lambda: Checkpoint.open(model))


def test_what_was_compressed_although_not_asked_for(model: str, hub_here: LoopbackHub) -> None:
    """Some kilobytes unpack to gigabytes."""
    content = gzip.compress(b" " * (1 << 20))
    for path, read in (
        ("^/api/models", lambda: Checkpoint.open(model)),
        ("/resolve/", lambda: local_file("hf://org/other/some.xyz")),
    ):
        hub_here.fail("GET", path, content=content, headers={"Content-Encoding": "gzip"}, times=float("inf"))
        assert "is compressed, although asked not to be" in failure(read)
        hub_here.faults.clear()


def test_a_list_that_is_too_long(model: str, hub_here: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_LONGEST_API", 1000)
    hub_here.fail("GET", "^/api/models", content=b" " * 2000 + b"{}", times=float("inf"))
    assert "longer than 1,000 bytes" in failure(lambda: Checkpoint.open(model))


def test_an_error_of_ours_is_not_blamed_on_the_hub() -> None:
    from surgeon.checkpoint.hub import hub_errors

    with pytest.raises(KeyError), hub_errors("hf://org/model"):
        {}["ours"]
    with pytest.raises(EnvironmentFailure), hub_errors("hf://org/model"):
        raise EnvironmentFailure("as it is")
