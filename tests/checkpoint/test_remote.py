"""Models on the Hub: read in parts, at one commit, against the true client library and a Hub on loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import TOKEN, LoopbackHub
from remote_models import LAYERS, SHAPE, in_cache, total, weight_bytes, weights, write
from safetensors.numpy import save_file

import surgeon
from surgeon.checkpoint import remote
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import header_bytes
from surgeon.diff.comparison import compare
from surgeon.errors import EnvironmentFailure, InputError, SurgeonError

pytest_plugins = ["remote_models"]


def test_opening_reads_headers_and_an_array_only_itself(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    commit = hub_here.add_folder("org/model", model)
    for name in ("hf://org/model", "org/model", f"hf://org/model@{commit}", "hf://org/model@main"):
        checkpoint = Checkpoint.open(name)
        assert (checkpoint.source.name, checkpoint.source.revision, checkpoint.is_remote) == (name, commit, True)
        assert checkpoint.source.pinned == f"hf://org/model@{commit}"
    local = Checkpoint.open(model)
    assert {n: (i.dtype, i.shape, i.offset) for n, i in checkpoint.tensors.items()} == {
        n: (i.dtype, i.shape, i.offset) for n, i in local.tensors.items()
    }
    assert checkpoint.config == local.config
    assert checkpoint.data_bytes == total(model)
    assert weight_bytes(hub_here) < 0.3 * total(model)
    before = weight_bytes(hub_here)
    name = "model.layers.5.mlp.down_proj.weight"
    assert checkpoint.array(name).tobytes() == weights()[name].tobytes()
    assert weight_bytes(hub_here) - before == weights()[name].nbytes
    changed = checkpoint.private_array(name)
    changed[0] = 0
    assert checkpoint.array(name).tobytes() == weights()[name].tobytes()
    assert in_cache(tmp_path) == {"config.json", "model.safetensors.index.json"}


def test_a_revision_is_pinned_when_it_is_looked_up(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    first = hub_here.add_folder("org/model", model)
    checkpoint = Checkpoint.open("hf://org/model")
    second = hub_here.add_folder("org/model", write(tmp_path / "second", weights(1)))
    name = "model.layers.0.mlp.down_proj.weight"
    assert checkpoint.array(name).tobytes() == weights(0)[name].tobytes()
    assert Checkpoint.open(f"hf://org/model@{first}").array(name).tobytes() == weights(0)[name].tobytes()
    newest = Checkpoint.open("org/model")
    assert newest.source.revision == second != first
    assert newest.array(name).tobytes() == weights(1)[name].tobytes()


@pytest.mark.parametrize("layout", ["single", "no index"])
def test_other_layouts(layout: str, hub_here: LoopbackHub, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", weights(), shards=1 if layout == "single" else 3)
    (folder / "model.safetensors.index.json").unlink()
    if layout == "single":
        (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    hub_here.add_folder("org/model", folder)
    assert set(Checkpoint.open("org/model").tensors) == set(weights())
    hub_here.add("org/other", {"pytorch_model.bin": b"x"})
    with pytest.raises(InputError, match=r"org/other: holds pytorch_model.bin but no safetensors"):
        Checkpoint.open("org/other")
    hub_here.add("org/none", {"README.md": b"x"})
    with pytest.raises(InputError, match=r"org/none: no safetensors file in this"):
        Checkpoint.open("org/none")


def test_a_long_header_takes_a_second_request(hub_here: LoopbackHub, tmp_path: Path) -> None:
    tensors = {f"model.layers.{i}.input_layernorm.weight": np.ones(4, np.float32) for i in range(2000)}
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    hub_here.add_folder("org/model", folder)
    found = Checkpoint.open("org/model")
    assert len(found.tensors) == 2000
    assert found.array("model.layers.1999.input_layernorm.weight").tolist() == [1.0] * 4


def test_what_is_in_the_cache_is_not_fetched_again_and_serves_without_the_hub(
    hub_here: LoopbackHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = hub_here.add_folder("org/model", model)
    here = Checkpoint.open("org/model").downloaded()
    assert not here.is_remote
    assert here.source.revision == commit
    before = weight_bytes(hub_here)
    again = Checkpoint.open("org/model")
    assert not again.is_remote
    assert again.downloaded() is again
    assert weight_bytes(hub_here) == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = Checkpoint.open("org/model")
    assert offline.source.pinned == f"hf://org/model@{commit}"
    name = "model.layers.3.mlp.down_proj.weight"
    assert offline.array(name).tobytes() == weights()[name].tobytes()
    with pytest.raises(EnvironmentFailure, match="HF_HUB_OFFLINE is set"):
        Checkpoint.open("org/other")


def test_a_remote_diff_is_the_local_one(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    changed = weights()
    changed["model.layers.2.mlp.down_proj.weight"][7, 9:20] = 0
    changed["model.layers.6.mlp.down_proj.weight"][:, 3] *= -1
    other = write(tmp_path / "other", changed, shards=2)
    hub_here.add_folder("org/model", model)
    hub_here.add_folder("org/other", other)
    here, there = compare(model, other).checkpoints, compare("org/model", "hf://org/other", jobs=2).checkpoints
    assert here is not None
    assert there is not None
    assert (there.total, there.dimensions()) == (here.total, here.dimensions())
    assert [(t.name, t.kind, t.change, t.rows) for t in there.tensors] == [
        (t.name, t.kind, t.change, t.rows) for t in here.tensors
    ]
    ranges = [
        one
        for one in hub_here.seen("GET", "^/cdn")
        if one.sent == weights()["model.layers.2.mlp.down_proj.weight"].nbytes
    ]
    assert len(ranges) == 2 * LAYERS  # a request a tensor and side, and no byte twice
    saved = tmp_path / "x.patch.safetensors"
    compare("org/model", other, save_patch=saved)
    patch = surgeon.region.patch.Patch.load(saved)
    assert patch.region.entries == 11 + SHAPE[0]
    assert patch.region.metadata["revision"] == Checkpoint.open("org/model").source.revision


def test_memory_of_a_remote_diff_stays_flat(hub: LoopbackHub, tmp_path: Path) -> None:
    script = (
        "import sys, tracemalloc, surgeon\n"
        "from surgeon.checkpoint.checkpoint import Checkpoint\n"
        "from surgeon.diff.diff import compare_checkpoints\n"
        "sides = [Checkpoint.open(name) for name in sys.argv[1:]]\n"
        "tracemalloc.start()\n"
        "assert not compare_checkpoints(*sides).identical\n"
        "print(tracemalloc.get_traced_memory()[1])"
    )
    peaks = []
    for rows in (1 << 13, 1 << 15):
        for side in range(2):
            array = np.full((rows, 1024), side, np.float16)
            data = header_bytes([("model.layers.0.mlp.up_proj.weight", "F16", array.shape)], {}) + array.tobytes()
            hub.add(f"org/m{rows}-{side}", {"model.safetensors": data})
        done = subprocess.run(
            [sys.executable, "-c", script, f"org/m{rows}-0", f"org/m{rows}-1"],
            env=hub.environment(tmp_path / "home"), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.2 * peaks[0] < 120e6


def test_a_connection_that_breaks_is_resumed_where_it_broke(hub_here: LoopbackHub, model: Path) -> None:
    hub_here.add_folder("org/model", model)
    checkpoint = Checkpoint.open("org/model")
    name = "model.layers.4.mlp.down_proj.weight"
    for after in (0, 1000, 200_000):
        hub_here.fail("GET", "/cdn/.*model-00003", drop_after=after)
    before = weight_bytes(hub_here)
    assert checkpoint.array(name).tobytes() == weights()[name].tobytes()
    assert weight_bytes(hub_here) - before == weights()[name].nbytes
    hub_here.fail("GET", "/resolve/.*model-00003", status=503, times=2)
    hub_here.fail("GET", "/resolve/.*model-00003", status=429, times=1, headers={"Retry-After": "1"})
    other = "model.layers.5.mlp.down_proj.weight"
    assert checkpoint.array(other).tobytes() == weights()[other].tobytes()


FAULTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "401": ({"status": 401}, 2, "hf auth login"),
    "403": ({"status": 403}, 2, "does not have this right"),
    "404": ({"status": 404}, 2, "nothing there under this name"),
    "429": ({"status": 429}, 3, "too many requests"),
    "503": ({"status": 503}, 3, "the Hub is in trouble"),
    "hangs up": ({"drop_after": 0}, 3, "the connection to the Hub broke"),
    "whole file": ({"status": 200, "body": "x" * 5000}, 3, "does not serve parts of files"),
    "too short": ({"status": 416}, 2, "ends before byte"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", ["header", "tensor"])
def test_what_goes_wrong_on_the_way_gets_one_message(
    fault: str, at: str, hub_here: LoopbackHub, model: Path, tmp_path: Path
) -> None:
    what, code, message = FAULTS[fault]
    hub_here.add_folder("org/model", model)
    checkpoint, in_second = Checkpoint.open("org/model"), "model.layers.2.mlp.down_proj.weight"
    pattern = "/cdn/.*model-00002" if "drop_after" in what else "/resolve/.*model-00002"
    hub_here.fail("GET", pattern, times=float("inf"), **what)
    read = (lambda: Checkpoint.open("org/model")) if at == "header" else (lambda: checkpoint.array(in_second))
    with pytest.raises(SurgeonError) as caught:
        read()
    text = str(caught.value)
    assert caught.value.exit_code == code
    assert message in text
    assert "model-00002-of-00004.safetensors" in text
    assert "\n" not in text
    assert TOKEN not in text
    assert in_cache(tmp_path) == {"config.json", "model.safetensors.index.json"}


def test_a_repository_that_cannot_be_looked_up(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    hub_here.add_folder("org/model", model)
    for name, code, message in (
        ("org/nothing", 2, "no such folder here; on the Hub: nothing there under this name"),
        ("hf://org/nothing", 2, "^hf://org/nothing: nothing there"),
        ("hf://org/model@nothing", 2, "no such revision"),
        ("hf://nothing", 2, "has the form hf://org/name"),
    ):
        with pytest.raises(SurgeonError, match=message) as caught:
            Checkpoint.open(name)
        assert caught.value.exit_code == code
    hub_here.fail("GET", "^/api/models", drop_after=0, times=float("inf"))
    with pytest.raises(EnvironmentFailure, match="connection to the Hub broke"):
        Checkpoint.open("org/model")


DAMAGES = {
    "cut off": (lambda data: data[:-10], "truncated"),
    "cut off in the header": (lambda data: data[:40], "cut off inside its header"),
    "oversized header": (lambda data: (1 << 40).to_bytes(8, "little") + data[8:], "cut off inside its header"),
    "empty": (lambda data: b"", "cut off inside its header"),
    "no json": (lambda data: data[:8] + b"x" + data[9:], "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(damage: str, hub_here: LoopbackHub, model: Path) -> None:
    change, message = DAMAGES[damage]
    shard = model / "model-00002-of-00004.safetensors"
    shard.write_bytes(change(shard.read_bytes()))
    hub_here.add_folder("org/model", model)
    with pytest.raises(InputError, match=rf"hf://org/model@\w+/model-00002-of-00004.safetensors: .*{message}"):
        Checkpoint.open("org/model")
    assert weight_bytes(hub_here) < 0.2 * total(model) + 4 * (1 << 16)


def test_a_run_without_progress_gives_up(hub_here: LoopbackHub, model: Path) -> None:
    hub_here.add_folder("org/model", model)
    checkpoint = Checkpoint.open("org/model")
    hub_here.fail("GET", "/cdn", drop_after=0, times=float("inf"))
    before = len(hub_here.seen("GET", "/cdn"))
    with pytest.raises(EnvironmentFailure):
        checkpoint.array("model.layers.0.mlp.down_proj.weight")
    assert len(hub_here.seen("GET", "/cdn")) - before == remote.TRIES
