"""Tied weights: the rule is that of transformers, for every family it has; what is one parameter is edited as one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import ModelMaker
from measured import measure_variants
from safetensors.torch import load_file, save_file

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import place
from surgeon.checkpoint.storage import TensorInfo
from surgeon.checkpoint.ties import NEVER_TIED, TIED_BY_DEFAULT, stored_copies, tied_groups
from surgeon.measure.perplexity import evaluation_texts
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack, make_stack
from surgeon.model.model import load_model
from surgeon.operations import Noise, Operation, Zero
from surgeon.operations.edits import EditCount, Surgery
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Region
from surgeon.text.corpora import Corpus, FileLocation
from surgeon.write.marker import Marker
from surgeon.write.staging import write_variant


def families() -> dict[str, tuple[Any, list[dict[str, str]]]]:
    """By `model_type`: the default of `tie_word_embeddings`, and what each of its classes ties to what."""
    found: dict[str, tuple[Any, list[dict[str, str]]]] = {}
    for config, chosen in transformers.MODEL_FOR_CAUSAL_LM_MAPPING.items():
        classes = chosen if isinstance(chosen, tuple) else (chosen,)
        keys = [getattr(item, "_tied_weights_keys", None) or {} for item in classes]
        found[config.model_type] = (getattr(config, "tie_word_embeddings", None), keys)
    return found


FAMILIES = families()


def test_the_defaults_are_those_of_every_family_in_transformers() -> None:
    assert len(FAMILIES) > 100
    for family, (default, keys) in FAMILIES.items():
        assert (family in NEVER_TIED) == (not any(keys)), family
        if family not in NEVER_TIED:
            assert (family in TIED_BY_DEFAULT) == bool(default), family


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_head_and_embeddings_are_found_under_the_names_of_every_family(family: str) -> None:
    default, keys = FAMILIES[family]
    for tied in keys:
        for head, embeddings in tied.items():
            if not head.endswith(".weight") or re.search("embed", head):
                continue  # biases of encoders; a family that ties its embeddings to its head (turned round below)
            roles = [place(TensorInfo(name, "F32", (8, 4), Path(), 0, 0), {}).role for name in (embeddings, head)]
            assert roles == ["embed", "head"]
            groups = tied_groups([embeddings, head], {"model_type": family}, lambda one, other: True)
            assert groups == (((embeddings, head),) if default else ())
            asked = {"model_type": family, "tie_word_embeddings": True}
            assert tied_groups([embeddings, head], asked, lambda one, other: True) == ((embeddings, head),)
            assert tied_groups([embeddings, head], {**asked, "tie_word_embeddings": False}, lambda *names: True) == ()


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt"])
def test_tables_of_a_family_that_stores_inputs_first_have_outputs_first_themselves(family: str) -> None:
    """Only what transformers' own Conv1D holds is (inputs, outputs)."""
    config = transformers.AutoConfig.for_model(family, n_layer=1)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 2:
            info = TensorInfo(f"{path}.weight", "F32", tuple(weight.shape), Path(), 0, 0)
            turned = type(module).__name__ == "Conv1D"
            assert place(info, {"model_type": family}).output_axis == int(turned), path


def test_what_is_a_head_elsewhere_is_not_taken_for_one_inside_a_layer() -> None:
    names = ["model.embed_tokens.weight", "model.layers.0.attention.output.weight", "lm_head.weight"]
    (group,) = tied_groups(names, {"tie_word_embeddings": True}, lambda *pair: True)
    assert group == ("model.embed_tokens.weight", "lm_head.weight")
    table = TensorInfo("audio_tower.embed_positions.weight", "F32", (8, 4), Path(), 0, 0)
    assert place(table, {}).role == "audio"


StoreBoth = Callable[..., Path]


@pytest.fixture
def store_both(make_model: ModelMaker, tmp_path: Path) -> StoreBoth:
    """A GPT-2 whose config does not say whether it is tied, and that stores its head too."""

    def store(shift: float = 0.0) -> Path:
        folder = tmp_path / "both"
        shutil.copytree(make_model("gpt2"), folder)
        config = json.loads((folder / "config.json").read_text())
        config.pop("tie_word_embeddings", None)
        (folder / "config.json").write_text(json.dumps(config))
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + shift
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return store


def nll(stack: Stack, texts: dict[str, str], variant: Variant = Variant("base")) -> float:  # noqa: B008
    spec, corpus = VerifySpec(tokens=30, window=16), Corpus("c", {"de": FileLocation(Path(texts["de"]))})
    prepared = evaluation_texts(stack.loaded.tokenizer, corpus, ["de"], spec)
    return measure_variants(stack, [variant], prepared, 4, Progress())[variant.name]["de"].nll


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("named", ["lm_head.weight", "transformer.wte.weight"])
def test_a_family_tied_by_default_is_edited_as_transformers_loads_it(
    shift: float, named: str, store_both: StoreBoth, texts: dict[str, str], tmp_path: Path
) -> None:
    """One parameter if both copies hold the same, two if they differ; in memory and on disk alike."""
    checkpoint = Checkpoint.open(store_both(shift))
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    one = model.lm_head.weight is model.transformer.wte.weight
    assert one == (shift == 0)
    copies = stored_copies(checkpoint.ties, named)
    assert set(copies) == ({"lm_head.weight", "transformer.wte.weight"} if one else {named})
    region = Region.from_indices({named: np.arange(0, 4000, 3)}, {named: checkpoint.tensors[named].shape})
    write_variant(checkpoint, [Zero(zero="r")], {"r": region}, tmp_path / "cut")
    cut = Checkpoint.open(tmp_path / "cut")
    for name in checkpoint.tensors:
        changed = not np.array_equal(cut.array(name), checkpoint.array(name))
        assert changed == (name in copies)
    stack, written = (make_stack(load_model(item, "float32")) for item in (checkpoint, cut))
    before = nll(stack, texts)
    inside = nll(stack, texts, Variant("v", [Zero(zero="r")], {"r": region}))
    assert inside == nll(written, texts) != before
    assert nll(stack, texts) == before


@pytest.mark.parametrize("operation", [Zero(zero="r"), Noise(noise="r", relative=0.5)], ids=lambda item: item.kind)
def test_a_region_that_names_both_copies_takes_the_union(
    operation: Operation, store_both: StoreBoth, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(store_both())
    names = ("transformer.wte.weight", "lm_head.weight")
    shape = checkpoint.tensors[names[0]].shape
    region = Region.from_indices(
        {names[0]: np.array([1, 5, 9]), names[1]: np.array([0, 5, 70])}, dict.fromkeys(names, shape)
    )
    edits = [Surgery(checkpoint, [operation], {"r": region}).edit(name) for name in names]
    for edit in edits:
        assert edit.indices.tolist() == [0, 1, 5, 9, 70]
        assert edit.values.tobytes() == edits[0].values.tobytes()
    before = checkpoint.array(names[0]).reshape(-1)[[0, 1, 5, 9, 70]].astype(np.float64)
    counted = Surgery(checkpoint, [operation], {"r": region}).count()
    assert (counted.entries, counted.changed) == (5, 5)
    expected = torch.from_numpy(before - edits[0].values.astype(np.float64)).norm().item()
    assert counted.norm == pytest.approx(expected, rel=1e-12)
    write_variant(checkpoint, [operation], {"r": region}, tmp_path / "v")
    marker = Marker.read(tmp_path / "v")
    assert marker.edits == counted
    assert (marker.tensors, marker.entries) == (2, 10)


def test_zeroing_zeros_changes_nothing(make_model: ModelMaker) -> None:
    folder = make_model("llama", dtype="bfloat16", seed=3)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[:10] = torch.tensor([0.0, -0.0, 1.0, 2.0, 0.0, -2.0, 0.0, 0.0, 4.0, 0.0])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    checkpoint = Checkpoint.open(folder)
    region = Region.from_indices({name: np.arange(10)}, {name: checkpoint.tensors[name].shape})
    assert Surgery(checkpoint, [Zero(zero="r")], {"r": region}).count() == EditCount(10, 4, 25.0)
