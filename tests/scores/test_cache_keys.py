"""Kept scores and regions are found by what made them: whatever else they would be made of names another file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from surgeon import scoring
from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import is_sealed, seal
from surgeon.checkpoint.store import cache_folder
from surgeon.errors import CheckpointError
from surgeon.model.workplace import Workplace
from surgeon.region.region import Region
from surgeon.regions import make as kept_regions
from surgeon.regions.make import keep_region, load_region
from surgeon.scores.activation import Activation
from surgeon.scores.base import SampledScore
from surgeon.scores.grad_param import GradParam
from surgeon.scores.wanda import Wanda
from surgeon.scoring import allocate_score, score_arrays, score_path

RecipeMaker = Callable[..., Path]
NAME = "model.layers.0.mlp.up_proj.weight"
SCORES: list[SampledScore] = [
    GradParam(kind="grad_param", languages=["de"], samples=4, sequence_length=32, batch_size=2),
    Wanda(kind="wanda", languages=["de"], samples=4, sequence_length=32, batch_size=2),
    Activation(kind="activation", languages=["de"], samples=4, sequence_length=32, batch_size=2, measure="spike"),
]
OTHER: dict[str, Any] = {
    "samples": 5, "sequence_length": 31, "batch_size": 3, "reduction": "absolute", "power": 2, "measure": "mean",
}  # fmt: skip


def one_entry(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME] = tensors[NAME].copy()
    tensors[NAME][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def config(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "rms_norm_eps": 0.5}))


CHANGES: dict[str, Callable[[Path], object]] = {
    "an entry": one_entry,
    "config": config,
    "tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "added tokens": lambda folder: (folder / "added_tokens.json").write_text("{}"),
}


def name_of_scores(checkpoint: Checkpoint, **changes: Any) -> Path:
    tensors = [info for name, info in sorted(checkpoint.tensors.items()) if ".mlp." in name]
    given = {
        "tensors": tensors,
        "text_hash": "a" * 64,
        "score": SCORES[0],
        "workplace": Workplace("cpu", 1),
        **changes,
    }
    return score_path(checkpoint, **given)


def test_every_setting_gives_scores_another_name(llama: Path) -> None:
    checkpoint = Checkpoint.open(llama)
    found = [name_of_scores(checkpoint, score=SCORES[0].model_copy(update={"dtype": "native"}))]
    for score in SCORES:
        found.append(name_of_scores(checkpoint, score=score))
        for setting in type(score).model_fields.keys() - {"kind", "languages", "dtype"}:
            other = score.model_copy(update={setting: OTHER[setting]})
            found.append(name_of_scores(checkpoint, score=other))
    assert len(found) == len(set(found)) == 16


def test_languages_share_score_files_whatever_else_is_scored(llama: Path) -> None:
    checkpoint = Checkpoint.open(llama)
    more = SCORES[0].model_copy(update={"languages": ["fr", "de"], "dtype": "float32"})
    assert name_of_scores(checkpoint, score=more) == name_of_scores(checkpoint)


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_gives_scores_another_name(change: str, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "other")
    same = name_of_scores(Checkpoint.open(tmp_path / "other"))
    CHANGES[change](tmp_path / "other")
    assert same == name_of_scores(Checkpoint.open(llama)) != name_of_scores(Checkpoint.open(tmp_path / "other"))


def test_texts_tensors_devices_and_versions_give_scores_another_name(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(llama)
    before, tensors = name_of_scores(checkpoint), [info for name, info in checkpoint.tensors.items() if "mlp" in name]
    others = {
        name_of_scores(checkpoint, text_hash="b" * 64),
        name_of_scores(checkpoint, workplace=Workplace("cuda", 1)),
    }
    others |= {name_of_scores(checkpoint, tensors=tensors[1:]), name_of_scores(checkpoint, tensors=tensors[::-1])}
    for name, value in (("SCORE_VERSION", scoring.SCORE_VERSION + 1), ("library_versions", lambda: {"torch": "0.0"})):
        with monkeypatch.context() as patched:
            patched.setattr(scoring, name, value)
            others.add(name_of_scores(checkpoint))
    assert len(others - {before}) == 6
    assert name_of_scores(checkpoint, workplace=Workplace("cuda:0", 2)) == name_of_scores(
        checkpoint, workplace=Workplace("cuda:1", 1)
    )


def test_a_score_file_holds_what_was_written_and_is_believed_only_sealed(llama: Path, tmp_path: Path) -> None:
    checkpoint, path = Checkpoint.open(llama), tmp_path / "x.safetensors"
    tensors = [checkpoint.tensors[NAME], checkpoint.tensors["model.norm.weight"]]
    allocate_score(path, tensors, "de")
    assert not is_sealed(path)
    written = score_arrays(path, writable=True)
    assert {name: (array.dtype, array.shape) for name, array in written.items()} == {
        info.name: (np.dtype(np.float32), info.shape) for info in tensors
    }
    assert not any(array.any() for array in written.values())
    written[NAME][:] = np.arange(written[NAME].size, dtype=np.float32).reshape(written[NAME].shape)
    seal(path)
    assert is_sealed(path)
    scores = score_arrays(path)
    assert np.array_equal(scores[NAME].reshape(-1), np.arange(checkpoint.tensors[NAME].numel))
    assert not scores["model.norm.weight"].any()
    assert load_file(path)[NAME].reshape(-1)[:3].tolist() == [0, 1, 2]  # as another library reads it
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "surgeon-score", "format_version": "3", "language": "de"}
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert not is_sealed(path)


KEYS = {"de": "1" * 64, "fr": "2" * 64}
CORE = "select: {top: 0.05}"
SELECTIONS = {
    "less": {CORE: "select: {top: 0.04}"},
    "the other end": {CORE: "select: {bottom: 0.05}"},
    "layer by layer": {CORE: "select: {top: 0.05, scope: layer}"},
    "of one language": {CORE: "select: {top: 0.05, monolingual: de}"},
    "rows": {CORE: "select: {top: 0.05, unit: row}\n    exclude: [norm]"},
    "columns": {CORE: "select: {top: 0.05, unit: column}\n    exclude: [norm]"},
    "fewer tensors": {CORE: f"{CORE}\n    exclude: [mlp.up]"},
    "another score": {"samples: 4": "samples: 5"},
}


def name_of_region(path: Path, name: str = "core", keys: dict[str, str] = KEYS) -> Path:
    made = plan_recipe(path)
    return kept_regions._path(made.provenance(1), made.regions[name], keys)


def test_every_way_to_select_gives_a_region_another_name(recipe: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [name_of_region(recipe()), *(name_of_region(recipe(**changes)) for changes in SELECTIONS.values())]
    found += [name_of_region(recipe(), name) for name in ("bottom", "random")]
    found += [name_of_region(recipe(**{"seed: 7": "seed: 8"}), "random")]
    found += [name_of_region(recipe(), keys={**KEYS, "fr": "3" * 64}), name_of_region(recipe(), keys={})]
    for draw in (
        "{of: core}",
        "{of: core, seed: 1}",
        "{of: core, matched: l2}",
        "{of: bottom}",
        "{of: core, draw: bottom}",
    ):
        drawn = recipe(
            **{"  random: {select: {random: 0.05, seed: 7}, exclude: [norm]}\n": f"  drawn: {{control: {draw}}}\n"}
        )
        found.append(name_of_region(drawn, "drawn"))
    other = recipe(**{
        CORE: "select: {top: 0.04}",
        "  random: {select: {random: 0.05, seed: 7}, exclude: [norm]}\n": "  drawn: {control: {of: core}}\n",
    })  # fmt: skip
    found.append(name_of_region(other, "drawn"))  # of another region under the same name
    monkeypatch.setattr(kept_regions, "REGION_VERSION", kept_regions.REGION_VERSION + 1)
    found.append(name_of_region(recipe()))
    assert len(set(found)) == len(found)


def test_regions_follow_the_weights_and_the_heads_of_a_model_and_not_the_recipes_name(
    light_recipe: RecipeMaker, llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    moved = {f"model: {llama}": f"model: {folder}"}
    by_head = {**moved, CORE: "select: {top: 0.5, unit: head}\n    include: [attn]"}
    plain, heads = name_of_region(light_recipe(**moved)), name_of_region(light_recipe(**by_head))
    assert name_of_region(light_recipe(**moved, **{"name: test": "name: other"})) == plain
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "num_key_value_heads": 4}))
    assert name_of_region(light_recipe(**by_head)) != heads
    assert name_of_region(light_recipe(**moved)) == plain
    one_entry(folder)
    assert name_of_region(light_recipe(**moved)) != plain


def test_a_kept_region_is_the_one_that_was_kept_with_its_provenance(recipe: RecipeMaker, tmp_path: Path) -> None:
    made = plan_recipe(recipe())
    core = made.regions["core"]
    assert load_region(made.provenance(1), core, KEYS) is None
    chosen = {info.name: np.array([0, info.numel - 1]) for info in core.tensors}
    selected = Region.from_indices(chosen, {info.name: info.shape for info in core.tensors})
    kept = keep_region(made.provenance(1), core, KEYS, selected)
    found = load_region(made.provenance(1), core, KEYS)
    assert found is not None
    for region in (kept, found):
        assert {name: region.indices(name).tolist() for name in region} == {
            name: indices.tolist() for name, indices in chosen.items()
        }
        assert region.metadata["select"] == {"top": 0.05, "seed": 0, "scope": "tensor", "unit": "entry", "by": "mean"}
        assert region.metadata["score"]["kind"] == "grad_param"
        assert region.metadata["corpus"] == made.corpus.name
        assert set(region.metadata["source_sha256"]) == set(chosen)
        assert (region.metadata["model_type"], region.metadata["revision"]) == ("llama", None)
    assert load_region(made.provenance(1), core, {**KEYS, "fr": "3" * 64}) is None
    path = kept_regions._path(made.provenance(1), core, KEYS)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert load_region(made.provenance(1), core, KEYS) is None


def test_a_region_selected_from_what_has_changed_meanwhile_is_not_kept(
    recipe: RecipeMaker, llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama, tmp_path / "model")
    made = plan_recipe(recipe(**{f"model: {llama}": f"model: {tmp_path / 'model'}"}))
    core = made.regions["core"]
    selected = Region.from_indices({NAME: np.array([1])}, {NAME: made.checkpoint.tensors[NAME].shape})
    kept_regions._path(made.provenance(1), core, KEYS)  # its hashes are known from now on
    one_entry(tmp_path / "model")
    with pytest.raises(CheckpointError):
        keep_region(made.provenance(1), core, KEYS, selected)
    assert not list((cache_folder() / "regions").glob("*.sha256"))
