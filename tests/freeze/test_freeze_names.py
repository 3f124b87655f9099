"""A bundle knows where its tensors stand in the model class: fused experts, missing prefixes, renamed weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, ModelMaker
from freezing import batches, compare, load, make_bundle, random_region, saved_state, tiny_model

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import FreezeError
from surgeon.freeze import Bundle, freeze, verify_saved, write_bundle
from surgeon.model.model import model_places
from surgeon.region.region import Region

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "max_position_embeddings": 64, "num_experts_per_tok": 2,
}  # fmt: skip
EXPERTS = {
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, intermediate_size=24, num_local_experts=4),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, intermediate_size=48, moe_intermediate_size=24, num_experts=4, head_dim=8
    ),
}


def bundled(folder: Path, model: Any) -> Path:
    """Save a model with a bundle over all its tensors on disk that says where they stand in the model class."""
    model.save_pretrained(folder)
    checkpoint = Checkpoint.open(folder)
    places = model_places(checkpoint)
    region = random_region(saved_state(folder))
    write_bundle(folder, region, base={"name": "tiny", "revision": None}, ties=checkpoint.ties, places=places)
    return folder


def train(model: Any, optimizer: Any, steps: int = 3) -> None:
    for batch in batches(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@pytest.fixture(scope="module", params=EXPERTS)
def experts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(EXPERTS[request.param]())
    return bundled(tmp_path_factory.mktemp("experts"), model)


def test_places_hold_the_values_of_the_disk(experts: Path) -> None:
    """In the loaded model, the entries that the manifest names are those of the file, for every tensor."""
    manifest = json.loads((experts / "freeze" / "manifest.json").read_text())["tensors"]
    parameters = dict(load(experts).named_parameters())
    stored = saved_state(experts)
    assert set(manifest) == set(stored)
    fused = 0
    for name, tensor in stored.items():
        entry = manifest[name]
        parameter = parameters[entry["model_name"]]
        assert list(parameter.shape) == entry["model_shape"]
        part = parameter.detach().flatten()[entry["model_offset"] : entry["model_offset"] + tensor.numel()]
        assert torch.equal(part, tensor.flatten()), name
        fused += entry["model_name"] != name
    assert fused >= 24  # two layers of four experts of three matrices


@pytest.mark.parametrize("family", FAMILIES)
def test_places_are_right_in_every_family(family: str, make_model: ModelMaker) -> None:
    """What names and shapes alone say is what the loaded model holds; every parameter of it has its tensors."""
    folder = make_model(family)
    places = model_places(Checkpoint.open(folder))
    parameters = dict(load(folder).named_parameters())
    for name, tensor in saved_state(folder).items():
        if name in places:
            place = places[name]
            values = parameters[place.name].detach().flatten()[place.offset : place.offset + tensor.numel()]
            assert tuple(parameters[place.name].shape) == place.shape
            assert torch.equal(values, tensor.flatten()), name
    assert {place.name for place in places.values()} == set(parameters)


def test_frozen_experts_keep_their_bits_in_training_and_on_disk(experts: Path, tmp_path: Path) -> None:
    model = load(experts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, experts, optimizer)
    entries = Bundle.load(experts).region.entries
    train(model, optimizer)
    assert frozen.verify() == frozen.verify(model) == frozen.entries == entries
    assert set(frozen.tensors) == set(saved_state(experts))
    model.save_pretrained(tmp_path)
    inside, outside = compare(experts, saved_state(tmp_path))
    assert inside == 0 < outside
    assert verify_saved(tmp_path, experts) == entries
    # Without freezing the same steps move the experts' entries, and reversion takes them back.
    free = load(experts)
    kept = freeze(free, experts)
    kept.remove()
    train(free, torch.optim.AdamW(free.parameters(), lr=1e-2, weight_decay=0.1))
    free.save_pretrained(tmp_path / "free")
    assert compare(experts, saved_state(tmp_path / "free"))[0] > 0.9 * entries
    kept.restore()
    free.save_pretrained(tmp_path / "restored")
    assert compare(experts, saved_state(tmp_path / "restored"))[0] == 0


def test_the_loader_of_the_documentation_freezes_experts(experts: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "freeze-format.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    model = load(experts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    names["freeze"](model, experts, optimizer)
    train(model, optimizer)
    model.save_pretrained(tmp_path)
    inside, outside = compare(experts, saved_state(tmp_path))
    assert inside == 0 < outside


def test_the_moved_expert_is_found(experts: Path) -> None:
    model = load(experts)
    frozen = freeze(model, experts)
    name = next(name for name in frozen.tensors if "experts.2." in name)
    tensor = Bundle.load(experts).tensors[name]
    with torch.no_grad():
        index = tensor.place.offset + int(Bundle.load(experts).region.indices(name)[0])
        model.get_parameter(tensor.place.name).view(-1)[index] += 1
    with pytest.raises(FreezeError, match=f"1 of {frozen.entries} frozen entries have moved"):
        frozen.verify()
    with pytest.raises(FreezeError, match="its frozen entries are not those of tiny"):
        freeze(model, experts)
    assert freeze(model, experts, strict=False).skipped.keys() == {name}


def test_a_model_that_names_experts_as_the_disk_does(experts: Path) -> None:
    """Other libraries keep the experts apart; the names on disk are good for them."""
    model = torch.nn.Module()
    for name, tensor in saved_state(experts).items():
        *path, last = name.split(".")
        module = model
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(tensor))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    frozen = freeze(model, experts, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert frozen.verify() == Bundle.load(experts).region.entries
    inside, outside = compare(experts, model.state_dict())
    assert inside == 0 < outside


def test_a_checkpoint_without_the_prefix_of_the_model_class(tmp_path: Path) -> None:
    base = bundled(tmp_path / "base", tiny_model(tie_word_embeddings=True).model)
    names = {name: tensor.place.name for name, tensor in Bundle.load(base).tensors.items()}
    assert names["layers.0.mlp.up_proj.weight"] == "model.layers.0.mlp.up_proj.weight"
    assert names["embed_tokens.weight"] == "model.embed_tokens.weight"
    for model in (transformers.LlamaForCausalLM.from_pretrained(base), transformers.LlamaModel.from_pretrained(base)):
        assert freeze(model, base).entries == Bundle.load(base).region.entries


def test_an_architecture_that_is_unknown_leaves_the_places_open(tmp_path: Path) -> None:
    base = make_bundle(tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "nobody-knows"}))
    assert model_places(Checkpoint.open(base)) == {}
    assert {tensor.place for tensor in Bundle.load(base).tensors.values()} == {None}


def test_a_place_of_another_shape_is_refused(experts: Path) -> None:
    sizes = {"num_local_experts": 3, "num_experts": 3}
    config = transformers.AutoConfig.from_pretrained(experts)
    config.update({key: value for key, value in sizes.items() if hasattr(config, key)})
    smaller = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(FreezeError, match=r"its shape is \[3, \d+(, \d+)?\] in the model and \[4, "):
        freeze(smaller, experts, check_values=False)
    assert isinstance(Bundle.load(experts).region, Region)
