"""The bundle on disk, and the refusals of one that does not fit: every reason is named, nothing is frozen silently."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from freezing import load, make_bundle, random_region, saved_state, tiny_model
from hub_server import LoopbackHub
from huggingface_hub import HfApi
from safetensors.torch import save_file

from surgeon.errors import EnvironmentFailure, FreezeError, RegionError
from surgeon.freeze import Bundle, freeze, verify_saved, write_bundle
from surgeon.freeze.binding import match_all
from surgeon.region.region import Region


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("base"))


def edited_manifest(base: Path, target: Path, edit) -> Path:  # type: ignore[no-untyped-def]
    shutil.copytree(base, target)
    path = target / "freeze" / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return target


def test_bundle_says_what_the_frozen_entries_hold(base: Path) -> None:
    import hashlib

    manifest = json.loads((base / "freeze" / "manifest.json").read_text())
    region = Region.load(base / "freeze" / "region.safetensors")
    assert manifest["polarity"] == "selected entries are frozen"
    assert set(manifest["tensors"]) == set(saved_state(base))
    for name, tensor in saved_state(base).items():
        entry = manifest["tensors"][name]
        frozen = tensor.numpy()[region.mask(name)]
        assert entry["shape"] == list(tensor.shape)
        assert (entry["dtype"], entry["entries"]) == ("F32", frozen.size)
        assert entry["sha256"] == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        assert entry["frozen_sha256"] == hashlib.sha256(frozen.tobytes()).hexdigest()


def test_bundle_is_found_from_its_folder_the_checkpoint_or_the_manifest(base: Path) -> None:
    bundles = [Bundle.load(path) for path in (base, base / "freeze", base / "freeze" / "manifest.json")]
    assert all(bundle.tensors == bundles[0].tensors and bundle.region == bundles[0].region for bundle in bundles)
    bare = Bundle.load(base / "freeze" / "region.safetensors")
    assert bare.region == bundles[0].region
    assert not bare.tensors


def test_bundle_from_a_hub_cache(base: Path, tmp_path: Path) -> None:
    """The real client, offline, reads a cache that holds the repository."""
    revision = "0" * 39 + "1"
    repository = tmp_path / "hub" / "models--someone--frozen"
    shutil.copytree(base / "freeze", repository / "snapshots" / revision / "freeze")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    code = "import sys; from surgeon.freeze import Bundle; print(*(Bundle.load(n).entries for n in sys.argv[1:]))"
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code, "someone/frozen", f"hf://someone/frozen@{revision}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == [str(Bundle.load(base).entries)] * 2


def test_bundle_from_the_hub(hub_here: LoopbackHub, base: Path, tmp_path: Path) -> None:
    """Only the small folder is fetched, whichever way the repository is named; the weights stay where they are."""
    api = HfApi()
    api.create_repo("someone/frozen")
    first = api.upload_folder(repo_id="someone/frozen", folder_path=base)
    api.create_repo("someone/plain")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="someone/plain")
    api.delete_folder("freeze", repo_id="someone/frozen")
    with pytest.raises(FreezeError, match=r"hf://someone/frozen: the repository has no freeze/manifest.json"):
        Bundle.load("someone/frozen")
    hub_here.requests.clear()
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters())
    frozen = freeze(model, f"hf://someone/frozen@{first.oid}", optimizer)
    assert frozen.entries == frozen.verify() == Bundle.load(base).region.entries
    assert Bundle.load("someone/frozen", revision=first.oid).tensors == Bundle.load(base).tensors
    assert sum(seen.sent for seen in hub_here.requests) < (base / "model.safetensors").stat().st_size
    assert not any("model.safetensors" in seen.path for seen in hub_here.requests)
    with pytest.raises(FreezeError, match="the repository has no such revision"):
        Bundle.load("hf://someone/frozen@gone")
    with pytest.raises(FreezeError, match=r"hf://someone/plain: .* holds no freeze bundle"):
        Bundle.load("someone/plain")
    with pytest.raises(FreezeError, match="no such folder here, and hf://someone/nothing: nothing there"):
        Bundle.load("someone/nothing")


def test_bundle_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FreezeError, match=r"no freeze/manifest.json there"):
        Bundle.load(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFailure, match=r"nobody/nothing: (not reached|the Hub cannot be reached)"):
        Bundle.load("nobody/nothing")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data.update(format_version=2), "upgrade surgeon"),
        (lambda data: data.update(polarity="selected entries train"), "upgrade surgeon"),
        (lambda data: data.pop("tensors"), "not a freeze manifest"),
        (lambda data: data["tensors"].pop("lm_head.weight"), "does not describe tensor 'lm_head.weight'"),
    ],
)
def test_damaged_manifests(base: Path, tmp_path: Path, edit, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FreezeError, match=message):
        Bundle.load(edited_manifest(base, tmp_path / "copy", edit))


def test_a_region_file_that_was_exchanged(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "copy")
    random_region(saved_state(base), seed=9).save(tmp_path / "copy" / "freeze" / "region.safetensors")
    with pytest.raises(RegionError, match="not the one of the manifest"):
        Bundle.load(tmp_path / "copy")


def test_another_base_is_refused(base: Path) -> None:
    with pytest.raises(FreezeError, match=r"not those of tiny.*21 of 21 tensors do not fit"):
        freeze(tiny_model(seed=1), base)


def test_entries_frozen_earlier_are_recognized_after_training_resumed(base: Path) -> None:
    """Only the frozen entries are compared, so a half-trained model still fits its bundle."""
    model = load(base)
    region = Bundle.load(base).region
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter[torch.from_numpy(~region.mask(name))] += 1
    assert freeze(model, base).entries == region.entries


def test_another_shape_and_missing_tensors(base: Path) -> None:
    with pytest.raises(FreezeError, match=r"its shape is \[32, 40\] in the model and \[32, 48\] in the bundle"):
        freeze(tiny_model(intermediate_size=40), base, check_values=False)
    shallow = tiny_model(num_hidden_layers=1)
    with pytest.raises(FreezeError, match=r"layers.1.*no parameter of that name.*9 of 21"):
        freeze(shallow, base, check_values=False)


def test_not_strict_freezes_what_fits_and_says_what_not(base: Path) -> None:
    shallow = load(base)
    del shallow.model.layers[1]
    frozen = freeze(shallow, base, strict=False)
    assert len(frozen.skipped) == 9
    assert len(frozen.tensors) == 12
    assert set(frozen.skipped.values()) == {"the model has no parameter of that name"}
    assert not set(frozen.skipped) & set(frozen.tensors)
    with pytest.raises(FreezeError, match="not those of tiny"):  # nothing fits at all
        freeze(tiny_model(seed=1), base, strict=False)


def test_a_model_loaded_narrower_than_it_is_stored(base: Path) -> None:
    with pytest.raises(FreezeError, match=r"stored as F32 but loaded as torch.bfloat16"):
        freeze(load(base, torch.bfloat16), base)
    frozen = freeze(load(base, torch.bfloat16), base, check_values=False)
    assert frozen.verify() == frozen.entries


def test_verify_saved_reads_the_disk(base: Path, tmp_path: Path) -> None:
    entries = Bundle.load(base).region.entries
    assert verify_saved(base, base) == entries
    model = load(base)
    model.double().save_pretrained(tmp_path / "wider")
    assert verify_saved(tmp_path / "wider", base) == entries
    name = "model.layers.1.mlp.down_proj.weight"
    index = int(Bundle.load(base).region.indices(name)[0])
    with torch.no_grad():
        model.get_parameter(name).view(-1)[index] += 1e-6
    model.save_pretrained(tmp_path / "moved")
    with pytest.raises(FreezeError, match=f"frozen entries have changed in '{name}'"):
        verify_saved(tmp_path / "moved", base)
    model.float().save_pretrained(tmp_path / "rounded")
    with pytest.raises(FreezeError, match=name):
        verify_saved(tmp_path / "rounded", base)
    with pytest.raises(FreezeError, match="a bare region says nothing of values"):
        verify_saved(base, base / "freeze" / "region.safetensors")


def test_bundle_of_a_sharded_checkpoint_and_an_empty_region(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    names = sorted(state)
    save_file({name: state[name].contiguous() for name in names[:9]}, tmp_path / "a-00001-of-00002.safetensors")
    save_file({name: state[name].contiguous() for name in names[9:]}, tmp_path / "a-00002-of-00002.safetensors")
    write_bundle(tmp_path, random_region(state), base={"name": "tiny", "revision": "abc"})
    assert verify_saved(tmp_path, tmp_path) == Bundle.load(tmp_path).region.entries
    with pytest.raises(FreezeError, match="nothing to freeze"):
        write_bundle(tmp_path, Region.from_indices({}, {"lm_head.weight": (64, 32)}), base={})
    with pytest.raises(FreezeError, match="has no tensor 'elsewhere'"):
        write_bundle(tmp_path, Region.from_indices({"elsewhere": np.array([0])}, {"elsewhere": (2,)}), base={})


def match_names(stored: list[str], model: list[str], hints: dict[str, str]) -> dict[str, str]:
    """Each name's partner in the model, where there is one alone."""
    found = match_all(stored, model, hints)
    assert all(len(partners) == 1 for partners in found.values())
    return {name: partners[0] for name, partners in found.items()}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (["model.a.w", "model.b.w"], {"model.a.w": "model.a.w", "model.b.w": "model.b.w"}),
        (["module.model.a.w", "module.model.b.w"], {"model.a.w": "module.model.a.w", "model.b.w": "module.model.b.w"}),
        (["net.model.a.w"], {"model.a.w": "net.model.a.w"}),
        (["a.w", "b.w"], {"model.a.w": "a.w", "model.b.w": "b.w"}),
        (["_orig_mod.model.a._checkpoint_wrapped_module.w"],
         {"model.a.w": "_orig_mod.model.a._checkpoint_wrapped_module.w"}),
        (["base_model.model.model.a.base_layer.w"], {"model.a.w": "base_model.model.model.a.base_layer.w"}),
        (["other.w"], {}),
    ],
)  # fmt: skip
def test_names_differ_by_one_prefix(model: list[str], expected: dict[str, str]) -> None:
    assert match_names(["model.a.w", "model.b.w"], model, {}) == expected


def test_names_known_to_the_bundle_and_names_that_fit_twice() -> None:
    assert match_names(["x.w"], ["wrapped.y.w"], {"x.w": "y.w"}) == {"x.w": "wrapped.y.w"}
    with pytest.raises(FreezeError, match=r"more than once, under 'student.' and 'teacher.'"):
        match_names(["a.w"], ["student.a.w", "teacher.a.w"], {})
