"""Recipes on models, donors, regions and patches of the Hub fetch what they need and no more."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import with_pictures
from hub_server import TOKEN, LoopbackHub
from remote_models import LAYERS, in_cache, recipe, total, weight_bytes, weights, write
from safetensors.numpy import load_file

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.diff.comparison import compare
from surgeon.errors import InputError, RecipeError
from surgeon.recipe.reading import load_recipe
from surgeon.views.inspection import look_at

pytest_plugins = ["remote_models"]


def test_a_plan_reads_headers_only(hub_here: LoopbackHub, model: Path, tmp_path: Path) -> None:
    hub_here.add_folder("org/model", model)
    made = surgeon.plan_recipe(recipe(tmp_path))
    assert made.variants["scaled"].entries_at_most == 1
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
