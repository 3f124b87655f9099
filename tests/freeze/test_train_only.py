"""`train_only`: a few entries train, all others keep their bits, and gradients and moments exist for those few only."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from freezing import batches, compare, load, random_region, saved_state, tiny_model

import surgeon
from surgeon.api import plan_recipe
from surgeon.errors import FreezeError, RecipeError
from surgeon.freeze import Bundle, freeze, verify_saved, write_bundle
from surgeon.freeze.trained import ShortGradient
from surgeon.region.region import Region


def make(folder: Path, fraction: float = 0.02, **changes: Any) -> Path:
    model = tiny_model(**changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[::7] = -0.0
    model.save_pretrained(folder)
    stored = saved_state(folder)
    trained = random_region({name: tensor for name, tensor in stored.items() if "norm" not in name}, fraction)
    ties = [["model.embed_tokens.weight", "lm_head.weight"]] if model.config.tie_word_embeddings else []
    write_bundle(folder, trained, base={"name": "tiny", "revision": None}, ties=ties, train_only=True)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("base"))


def trained_masks(folder: Path) -> dict[str, torch.Tensor]:
    """The masks of the region file, read without the bundle."""
    region = Region.load(folder / "freeze" / "region.safetensors")
    return {name: torch.from_numpy(region.mask(name)) for name in region}


def frozen_and_trained(base: Path, state: dict[str, torch.Tensor]) -> tuple[int, int]:
    """How many entries outside and inside of the trained region differ in bits."""
    trained, frozen = compare(base, state, Region.load(base / "freeze" / "region.safetensors"))
    return frozen, trained


def train(model: Any, optimizer: Any, steps: int = 4, clip: float | None = None, seed: int = 1) -> None:
    for batch in batches(steps, seed=seed):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def test_the_bundle_describes_every_tensor_and_hashes_what_is_frozen(base: Path) -> None:
    manifest = json.loads((base / "freeze" / "manifest.json").read_text())
    assert (manifest["format_version"], manifest["polarity"]) == (2, "selected entries train")
    masks = trained_masks(base)
    assert set(manifest["tensors"]) == set(saved_state(base)) == set(masks)
    for name, tensor in saved_state(base).items():
        frozen = tensor.numpy()[~masks[name].numpy()]
        assert manifest["tensors"][name]["entries"] == frozen.size
        assert manifest["tensors"][name]["frozen_sha256"] == hashlib.sha256(frozen.tobytes()).hexdigest()
    assert verify_saved(base, base) == Bundle.load(base).entries == sum(int((~mask).sum()) for mask in masks.values())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_it_trains_as_if_all_other_gradients_were_zero(base: Path, kind: str) -> None:
    """The reference keeps everything whole: dense masks on the gradients, the base put back after the step."""

    def optimizer_of(model: Any) -> Any:
        if kind == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, foreach=False)
        return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)

    masks = trained_masks(base)
    model, reference = load(base), load(base)
    optimizer, plain = optimizer_of(model), optimizer_of(reference)
    frozen = freeze(model, base, optimizer)
    train(model, optimizer, 5)
    before = {name: parameter.detach().clone() for name, parameter in reference.named_parameters()}
    for batch in batches(5):
        plain.zero_grad()
        reference(**batch).loss.backward()
        for name, parameter in reference.named_parameters():
            parameter.grad[~masks[name]] = 0
        plain.step()
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                parameter[~masks[name]] = before[name][~masks[name]]
    for name, parameter in reference.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter.detach()), name
    outside, inside = frozen_and_trained(base, model.state_dict())
    assert outside == 0
    assert inside > 0.9 * sum(int(mask.sum()) for mask in masks.values())
    assert frozen.verify() == frozen.entries == Bundle.load(base).entries


def test_clipping_sees_the_few_gradients(base: Path) -> None:
    masks = trained_masks(base)
    model, reference = load(base), load(base)
    freeze(model, base, torch.optim.AdamW(model.parameters(), lr=1e-2))
    batch = batches(1)[0]
    for each in (model, reference):
        each(**batch).loss.backward()
    for name, parameter in reference.named_parameters():
        parameter.grad[~masks[name]] = 0
    norms = [torch.nn.utils.clip_grad_norm_(each.parameters(), 1e-3) for each in (model, reference)]
    assert torch.allclose(norms[0], norms[1], rtol=1e-6)
    again = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert again.item() == pytest.approx(1e-3, rel=1e-3)


def test_gradients_and_moments_exist_for_the_trained_entries_only(base: Path) -> None:
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    freeze(model, base, optimizer)
    trained = sum(int(mask.sum()) for mask in trained_masks(base).values())
    for batch in batches(2):
        model(**batch).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert sum(gradient.kept.numel() for gradient in gradients) == trained
    assert {type(gradient) for gradient in gradients} == {ShortGradient}
    optimizer.step()
    for key in ("exp_avg", "exp_avg_sq"):
        assert sum(state[key].numel() for state in optimizer.state.values()) == trained


def test_accumulated_gradients_add_up(base: Path) -> None:
    masks, model, reference = trained_masks(base), load(base), load(base)
    freeze(model, base, torch.optim.SGD(model.parameters(), lr=0.1))
    for batch in batches(3):
        for each in (model, reference):
            each(**batch).loss.backward()
    for name, parameter in reference.named_parameters():
        expected = torch.where(masks[name], parameter.grad, 0.0)
        assert torch.equal(model.get_parameter(name).grad + 0.0, expected), name


def test_what_is_saved_has_the_models_own_names_and_loads_again(base: Path, tmp_path: Path) -> None:
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    frozen = freeze(model, base, optimizer)
    train(model, optimizer, 2)
    assert model.state_dict().keys() == load(base).state_dict().keys()
    model.save_pretrained(tmp_path)
    assert saved_state(tmp_path).keys() == saved_state(base).keys()
    assert verify_saved(tmp_path, base) == frozen.entries
    half = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 2, seed=5)
    end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert frozen.verify(load(tmp_path)) == frozen.entries
    # Resumed in a new process: weights, then the optimizer's state, then freezing.
    again = load(tmp_path)
    other = torch.optim.AdamW(again.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(moments))
    freeze(again, base, other)
    train(again, other, 2, seed=5)
    assert all(torch.equal(end[name], tensor) for name, tensor in again.state_dict().items())
    # Or into the frozen model itself.
    model.load_state_dict(half)
    optimizer.load_state_dict(copy.deepcopy(moments))
    train(model, optimizer, 2, seed=5)
    assert all(torch.equal(end[name], tensor) for name, tensor in model.state_dict().items())


def test_a_frozen_entry_that_moves_is_found(base: Path) -> None:
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    frozen = freeze(model, base, optimizer)
    train(model, optimizer, 4)
    mask = trained_masks(base)["lm_head.weight"].flatten()
    index = int(torch.nonzero(~mask)[7])
    model.lm_head.weight.data.view(-1)[index] += 1e-6
    with pytest.raises(FreezeError, match=r"have moved, in 'lm_head.weight'"):
        frozen.verify()
    with pytest.raises(FreezeError, match=r"not saved: frozen entries have moved, in 'lm_head.weight'"):
        model.state_dict()
    with pytest.raises(FreezeError, match="something other than an optimizer's step"):
        train(model, optimizer, 30)
    with pytest.raises(FreezeError, match="the frozen ones are not kept"):
        frozen.restore()


def test_remove_gives_the_parameters_back(base: Path) -> None:
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    frozen = freeze(model, base, optimizer)
    train(model, optimizer, 2)
    frozen.remove()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in load(base).named_parameters()]
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    train(model, optimizer, 1)
    assert frozen_and_trained(base, model.state_dict())[0] > 1000


def test_remove_after_a_step_that_failed_gives_the_parameters_back(base: Path) -> None:
    model = load(base)
    frozen = freeze(model, base)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def fails() -> float:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        optimizer.step(fails)
    frozen.remove()
    (group,) = optimizer.param_groups
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    train(model, optimizer, 1)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_where_more_than_a_tenth_trains_the_rest_is_held_as_ever(tmp_path: Path) -> None:
    base = make(tmp_path, 0.3)
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, base, optimizer)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    train(model, optimizer, 4, clip=1.0)
    outside, inside = frozen_and_trained(base, model.state_dict())
    assert outside == 0 < inside
    assert frozen.verify() == Bundle.load(base).entries


def test_tied_weights(tmp_path: Path) -> None:
    base = make(tmp_path, tie_word_embeddings=True)
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, base, optimizer)
    train(model, optimizer, 3, clip=1.0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    outside, inside = frozen_and_trained(base, model.state_dict())
    assert outside == 0 < inside
    assert frozen.verify() == frozen.entries


def test_another_base_is_refused(base: Path) -> None:
    with pytest.raises(FreezeError, match="not those of tiny"):
        freeze(tiny_model(seed=1), base)


def test_in_a_recipe(recipe: Callable[..., Path], tmp_path: Path, llama: Path) -> None:
    import transformers

    control = "  control: {operations: [{zero: bottom}], write: false}\n"
    no_verify = {"verify:\n  tokens: 64\n  window: 32\n": ""}
    path = recipe(**{control: control + "  narrow: {train_only: core}\n", **no_verify})
    assert "train only core" in plan_recipe(path).variants["narrow"].operations
    surgeon.apply(path, jobs=1)
    variant = tmp_path / "out" / "variants" / "narrow"
    assert (variant / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
    core = Region.load(tmp_path / "out" / "regions" / "core.region.safetensors")
    selected = Region.load(variant / "freeze" / "region.safetensors")
    assert all(np.array_equal(selected.mask(name), core.mask(name)) for name in core)
    assert set(selected) == set(saved_state(variant))
    assert "may change, and no others" in (variant / "README.md").read_text()
    model = transformers.AutoModelForCausalLM.from_pretrained(variant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, variant, optimizer)
    tokens = torch.arange(32).reshape(2, 16)
    for _ in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    outside, inside = frozen_and_trained(variant, model.state_dict())
    assert outside == 0 < inside <= core.entries
    assert frozen.verify() == frozen.entries
    for variant_text, message in [
        ("{freeze: core, train_only: core}", "has both `freeze` and `train_only`"),
        ("{train_only: cor}", "no region 'cor'; did you mean 'core'?"),
        ("{train_only: core, write: false}", "train_only writes a bundle"),
    ]:
        with pytest.raises(RecipeError, match=re.escape(message)):
            plan_recipe(recipe(**{"{operations: [{zero: core}]}": variant_text}))
