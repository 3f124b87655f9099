"""What goes to the Hub without its weights is made again, to the byte."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hub_server import LoopbackHub
from pushing import RECIPE, files_of, main

import surgeon
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError, InputError
from surgeon.hub.parcel import pack
from surgeon.hub.push import Target, push
from surgeon.hub.rebuild import rebuild
from surgeon.views.inspection import look_at

pytest_plugins = ["pushing"]


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
