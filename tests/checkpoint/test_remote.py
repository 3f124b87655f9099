"""Models on the Hub: read in parts, at one commit, against the true client library and a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import with_pictures
from hub_server import TOKEN, LoopbackHub
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import surgeon
from surgeon.checkpoint import remote
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import header_bytes
from surgeon.diff.comparison import compare
from surgeon.errors import EnvironmentFailure, InputError, RecipeError, SurgeonError
from surgeon.recipe.reading import load_recipe
from surgeon.views.inspection import look_at

LAYERS, SHAPE = 8, (256, 512)  # half a megabyte a tensor


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(LAYERS)]
    return {name: generator.normal(size=SHAPE).astype(np.float32) for name in names}


def write(folder: Path, tensors: dict[str, NDArray[np.float32]], shards: int = 4) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": SHAPE[0]}))
    weight_map = {}
    for i, names in enumerate(np.array_split(list(tensors), shards), 1):
        file = f"model-{i:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(map(str, names), file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model", weights())


def weight_bytes(hub: LoopbackHub) -> int:
    """Bytes of weight files that went over the wire so far."""
    return sum(one.sent for one in hub.seen("GET", "safetensors$"))


def in_cache(tmp_path: Path) -> set[str]:
    """Names of the files in the Hub's cache."""
    return {path.name for path in (tmp_path / "hub_cache").rglob("*") if path.is_file() and "snapshots" in path.parts}


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


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


RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "remote",
    "model": "org/model",
    "regions": {
        "one": {"entries": [{"tensor": "model.layers.2.mlp.down_proj.weight", "index": [3, 4]}]},
        "some": {"select": {"random": 0.01, "seed": 1}, "layers": [5, 5]},
    },
    "variants": {
        "scaled": {"operations": [{"scale": "one", "by": 4.0}], "write": "patch"},
        "zeroed": {"operations": [{"zero": "some"}], "write": "patch"},
        "unwritten": {"operations": [{"zero": "some"}], "write": False},
    },
}


def recipe(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output": str(tmp_path / "out"), **changes}))
    return path


def test_a_plan_reads_headers_only(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    hub_here.add_folder("org/model", model)
    made = surgeon.plan_recipe(recipe(tmp_path))
    assert made.variants["scaled"].entries == 1
    assert made.bytes_to_download == 0
    whole = surgeon.plan_recipe(recipe(tmp_path, variants={"cut": {"operations": [{"zero": "some"}]}}))
    assert whole.bytes_to_download == total(model)
    assert whole.disk_needed >= 2 * total(model)
    assert weight_bytes(hub_here) < 0.15 * total(model)
    assert not (tmp_path / "out").exists()
    assert in_cache(tmp_path) == {"config.json", "model.safetensors.index.json"}


def test_patches_need_only_the_tensors_that_they_change(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    commit = hub_here.add_folder("org/model", model)
    report = surgeon.apply(recipe(tmp_path))
    headers = 4 * (1 << 16)
    tensor = weights()["model.layers.2.mlp.down_proj.weight"].nbytes
    # Layer 2 once; layer 5 for its hash and for its values.
    assert weight_bytes(hub_here) <= headers + 3 * tensor < 0.5 * total(model)
    assert in_cache(tmp_path) == {"config.json", "model.safetensors.index.json"}
    out = tmp_path / "out"
    assert report.model.revision == commit
    assert report.model.content_sha256 is None
    assert {path.name for path in (out / "variants").iterdir()} == {
        "scaled.patch.safetensors",
        "zeroed.patch.safetensors",
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["model"] == {"source": "org/model", "revision": commit}
    assert manifest["inputs"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in model.glob("*.safetensors")
    }
    assert yaml.safe_load((out / "recipe.yaml").read_text())["model"] == f"hf://org/model@{commit}"
    # The same from the folder, and replayed on it.
    surgeon.apply(recipe(tmp_path, model=str(model)), output=tmp_path / "local")
    for name in ("scaled", "zeroed"):
        here, there = (load_file(o / "variants" / f"{name}.patch.safetensors") for o in (tmp_path / "local", out))
        assert {n: a.tobytes() for n, a in here.items()} == {n: a.tobytes() for n, a in there.items()}
    scaled = weights()
    scaled["model.layers.2.mlp.down_proj.weight"][3, 4] *= 4
    patch = str(out / "variants" / "scaled.patch.safetensors")
    replay = recipe(
        tmp_path,
        model=str(model),
        regions={"changed": {"file": patch}},
        variants={"again": {"operations": [{"restore": "changed", "from": patch}]}},
    )
    surgeon.apply(replay, output=tmp_path / "replayed")
    again = Checkpoint.open(tmp_path / "replayed" / "variants" / "again")
    assert all(again.array(name).tobytes() == array.tobytes() for name, array in scaled.items())


def test_a_donor_on_the_hub_gives_only_what_is_taken(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    commit = hub_here.add_folder("org/donor", write(tmp_path / "donor", weights(1)))
    path = recipe(tmp_path, model=str(model), variants={"v": {"operations": [{"restore": "one", "from": "org/donor"}]}})
    surgeon.apply(path)
    assert weight_bytes(hub_here) < 0.3 * total(model)
    name = "model.layers.2.mlp.down_proj.weight"
    expected = weights()[name]
    expected[3, 4] = weights(1)[name][3, 4]
    assert Checkpoint.open(tmp_path / "out" / "variants" / "v").array(name).tobytes() == expected.tobytes()
    written = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert written["variants"]["v"]["operations"][0]["from"] == f"hf://org/donor@{commit}"
    marker = json.loads((tmp_path / "out" / "variants" / "v" / "surgeon.json").read_text())
    assert marker["operations"] == [{"restore": "one", "from": f"hf://org/donor@{commit}"}]
    assert marker["donors"] == {f"hf://org/donor@{commit}": f"hf://org/donor@{commit}"}


def test_a_donor_that_the_hub_has_not_is_said_with_its_line(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, model=str(model), variants={"v": {"operations": [{"restore": "one", "from": "org/none"}]}})
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "org/none" in text)
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:{line}: org/none"):
        surgeon.plan_recipe(path)


def test_a_whole_variant_downloads_through_the_cache_resumes_and_never_writes_there(
    hub_here: LoopbackHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # so much is kept at a time; ten megabytes else
    commit = hub_here.add_folder("org/model", model)
    variants = {"cut": {"operations": [{"zero": "some"}]}}
    path = recipe(tmp_path, variants=variants)
    hub_here.fail("GET", r"/cdn/.*model-00003", drop_after=700_000, times=1, skip=1)  # the first asks for the header
    surgeon.apply(path)
    resumed = [one.range for one in hub_here.seen("GET", "/cdn/.*model-00003")]
    assert resumed[-1] == "bytes=700000-"
    out = tmp_path / "out" / "variants" / "cut"
    assert not any(item.is_symlink() for item in out.rglob("*"))
    cache = tmp_path / "hub_cache"
    assert any(item.is_symlink() for item in cache.rglob("*.safetensors"))
    for name, data in hub_here.files("org/model").items():
        assert (cache / "models--org--model" / "snapshots" / commit / name).read_bytes() == data
    surgeon.apply(recipe(tmp_path, model=str(model), variants=variants), output=tmp_path / "local")
    for shard in model.glob("*.safetensors"):
        assert (out / shard.name).read_bytes() == (tmp_path / "local" / "variants" / "cut" / shard.name).read_bytes()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["model"]["revision"] == commit
    inside = cache / "models--org--model" / "snapshots" / commit / "out"
    with pytest.raises(InputError, match="lies inside"):
        surgeon.apply(path, output=inside)


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


def test_a_private_repository_needs_the_token_and_the_token_goes_nowhere_else(
    hub: LoopbackHub, model: Path, surgeon_on_hub: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    commit = hub.add_folder("org/model", model, private=True)
    refused = surgeon_on_hub("inspect", "org/model", token=None)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: org/model: ")
    assert "hf auth login" in refused.stderr
    assert refused.stderr.count("\n") == 1
    shown = surgeon_on_hub("inspect", "hf://org/model", "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert (found["revision"], found["tensors"], found["bytes"]) == (commit, LAYERS, total(model))
    for one in hub.seen("GET", "^/cdn"):
        assert not one.authorized
    path = recipe(tmp_path)
    hub.fail("GET", "/resolve/.*model-00003", status=503, times=1)
    done = surgeon_on_hub("apply", path, SURGEON_CACHE=str(with_pictures(tmp_path / "scores")))
    assert done.returncode == 0, done.stderr
    texts = [done.stdout, done.stderr, shown.stderr, refused.stderr]
    texts += [item.read_text(errors="replace") for item in (tmp_path / "out").rglob("*") if item.is_file()]
    assert not any(TOKEN in text for text in texts)


def test_a_run_without_progress_gives_up(hub_here: LoopbackHub, model: Path) -> None:
    hub_here.add_folder("org/model", model)
    checkpoint = Checkpoint.open("org/model")
    hub_here.fail("GET", "/cdn", drop_after=0, times=float("inf"))
    before = len(hub_here.seen("GET", "/cdn"))
    with pytest.raises(EnvironmentFailure):
        checkpoint.array("model.layers.0.mlp.down_proj.weight")
    assert len(hub_here.seen("GET", "/cdn")) - before == remote.TRIES


def test_regions_and_patches_on_the_hub_are_files_like_others(
    hub_here: LoopbackHub, model: Path, tmp_path: Path
) -> None:
    changed = weights()
    changed["model.layers.2.mlp.down_proj.weight"][7, 9:20] = -0.0
    other = write(tmp_path / "other", changed)
    patch = tmp_path / "x.patch.safetensors"
    compare(model, other, save_patch=patch)
    commit = hub_here.add("org/shared", {"patches/x.patch.safetensors": patch.read_bytes()})
    hub_here.add("org/shared", {"README.md": b"newer"})
    address, newest = "hf://org/shared/patches/x.patch.safetensors", hub_here.repos["models/org/shared"].refs["main"]
    assert look_at(address)["entries"] == 11
    found = compare(model, other, regions=[address, f"hf://org/shared@{commit}/patches/x.patch.safetensors"])
    assert found.checkpoints is not None
    assert found.checkpoints.inside(0).changed == found.checkpoints.total.changed == 11
    assert compare(address, patch).overlap is not None
    path = recipe(
        tmp_path,
        model=str(model),
        regions={"changed": {"file": address}},
        variants={"again": {"operations": [{"restore": "changed", "from": address}]}},
    )
    surgeon.apply(path)
    again = Checkpoint.open(tmp_path / "out" / "variants" / "again")
    assert all(again.array(name).tobytes() == array.tobytes() for name, array in changed.items())
    written = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    pinned = f"hf://org/shared@{newest}/patches/x.patch.safetensors"
    assert written["regions"]["changed"]["file"] == pinned
    assert written["variants"]["again"]["operations"] == [{"restore": "changed", "from": pinned}]
    with pytest.raises(InputError, match=r"hf://org/shared/nothing.safetensors: nothing there"):
        look_at("hf://org/shared/nothing.safetensors")


def test_a_variant_on_the_hub_says_what_it_is(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    surgeon.apply(recipe(tmp_path, model=str(model), variants={"cut": {"operations": [{"zero": "some"}]}}))
    commit = hub_here.add_folder("org/cut", tmp_path / "out" / "variants" / "cut")
    here, there = look_at(str(tmp_path / "out" / "variants" / "cut")), look_at("hf://org/cut")
    assert (there["kind"], there["variant"], there["revision"]) == ("variant", "cut", commit)
    assert {**there, "source": None, "revision": None} == {**here, "source": None, "revision": None}


def test_the_page_on_the_hub_is_right_about_reading(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    hub_here.add_folder("org/name", model)
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    one, texts = re.findall(r"```yaml\n((?:model: hf://org/name |corpus:).*?)```", page, re.DOTALL)
    start = "version: 1\nname: page\noutput: out\n"
    (tmp_path / "one.yaml").write_text(start + one.replace("2070, 7310", "20, 73"))
    report = surgeon.apply(tmp_path / "one.yaml", output=tmp_path / "out")
    assert report.variants["without"].bytes is not None
    assert report.variants["without"].bytes < 1000
    (tmp_path / "texts.yaml").write_text(start + "model: builtin:tiny30\n" + texts)
    corpus = load_recipe(tmp_path / "texts.yaml").recipe.corpus
    assert isinstance(corpus, dict)
    assert set(corpus) == {"ar", "fr", "zh"}
