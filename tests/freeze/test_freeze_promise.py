"""Ways to break the promise that were once not noticed: each is an error where it happens, or is no way any more."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from freezing import adamw, assert_held, batches, compare, load, make_bundle, train
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from surgeon.errors import FreezeError
from surgeon.freeze import Bundle, freeze, release, verify_saved
from surgeon.freeze.frozen import EVERY
from surgeon.region.region import Region


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("base"))


def step(model: Any, optimizer: Any, seed: int = 1) -> None:
    train(model, optimizer, 1, seed=seed, clip=1.0)


class TestReplacedParameters:
    """The proof is about the model as it is now, not about parameters that it once had; what replaces them is held."""

    def test_assign_is_followed(self, base: Path) -> None:
        model = load(base)
        frozen = freeze(model, base)
        model.load_state_dict(load(base).state_dict(), assign=True)
        optimizer = adamw(model.parameters())
        for seed in range(3):
            step(model, optimizer, seed)
        assert_held(base, model, frozen)

    def test_assign_of_other_values_is_refused_where_it_happens(self, base: Path) -> None:
        model = load(base)
        freeze(model, base)
        other = {name: tensor + 1 for name, tensor in load(base).state_dict().items()}
        with pytest.raises(FreezeError, match="load_state_dict has brought other values"):
            model.load_state_dict(other, assign=True)

    def test_verify_looks_at_what_the_model_has_now(self, base: Path) -> None:
        model = load(base)
        frozen = freeze(model, base, adamw(model.parameters()))
        weight = model.lm_head.weight
        model.lm_head.weight = torch.nn.Parameter(weight.detach().clone())
        assert frozen.verify() == frozen.entries
        with torch.no_grad():
            model.lm_head.weight.add_(1)
        moved = len(Bundle.load(base).region.indices("lm_head.weight"))
        with pytest.raises(FreezeError, match=rf"{moved} of {frozen.entries} frozen entries have moved"):
            frozen.verify()
        model.lm_head.weight = weight
        assert frozen.verify() == frozen.entries

    def test_a_module_that_was_exchanged(self, base: Path) -> None:
        model = load(base)
        frozen = freeze(model, base)
        model.model.layers[1].mlp = copy.deepcopy(model.model.layers[1].mlp)
        assert frozen.verify() == frozen.entries
        step(model, adamw(model.parameters()))
        assert compare(base, model.state_dict())[0] == 0
        del model.model.layers[1].mlp
        with pytest.raises(FreezeError, match=r"no longer has the parameter .*layers.1.mlp"):
            frozen.verify()

    def test_a_step_after_the_replacement(self, base: Path) -> None:
        model = load(base)
        optimizer = adamw(model.parameters())
        frozen = freeze(model, base, optimizer)
        step(model, optimizer)
        for module in list(model.modules()):
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.detach().clone())
        optimizer.param_groups[0]["params"] = list(model.parameters())
        optimizer.state.clear()
        step(model, optimizer)
        assert_held(base, model, frozen)

    def test_a_replacement_of_other_values(self, base: Path) -> None:
        model = load(base)
        freeze(model, base, adamw(model.parameters()))
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
        with pytest.raises(FreezeError, match=r"'lm_head.weight': something other than an optimizer's step"):
            step(model, torch.optim.SGD([model.lm_head.weight], lr=0.1))


class TestAveraging:
    """The averaged model is what people save; rounding and the sign of zero would change it."""

    def test_an_average_that_is_followed(self, base: Path, tmp_path: Path) -> None:
        model = load(base)
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        plain = AveragedModel(load(base), avg_fn=lambda average, now, _: 0.9 * average + 0.1 * now)
        optimizer = adamw(model.parameters())
        frozen = freeze(model, base, optimizer)
        frozen.follow(averaged)
        frozen.follow(plain)
        for seed in range(4):
            step(model, optimizer, seed)
            averaged.update_parameters(model)
            plain.update_parameters(model)
        for number, each in enumerate((averaged, plain)):
            each.module.save_pretrained(tmp_path / str(number))
            assert verify_saved(tmp_path / str(number), base) == frozen.entries
            inside, outside = compare(base, each.module.state_dict())
            assert inside == 0 < outside
        assert frozen.verify() == frozen.entries

    def test_one_that_is_not_is_refused_when_it_is_saved(self, base: Path, tmp_path: Path) -> None:
        model = load(base)
        optimizer = adamw(model.parameters())
        frozen = freeze(model, base, optimizer)
        averaged = AveragedModel(model, avg_fn=lambda average, now, _: 0.9 * average + 0.1 * now)
        for seed in range(4):
            step(model, optimizer, seed)
            averaged.update_parameters(model)
        with pytest.raises(FreezeError, match=r"a deep copy of a frozen model holds other values.*follow"):
            averaged.state_dict()
        with pytest.raises(FreezeError, match="a deep copy"):
            averaged.module.save_pretrained(tmp_path)
        frozen.follow(averaged)
        assert compare(base, averaged.module.state_dict())[0] == 0

    def test_an_average_put_into_the_model_by_hand(self, base: Path) -> None:
        model = load(base)
        shadow = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = adamw(model.parameters())
        frozen = freeze(model, base, optimizer)
        for seed in range(4):
            step(model, optimizer, seed)
            for name, parameter in model.named_parameters():
                shadow[name] = 0.9 * shadow[name] + 0.1 * parameter.detach()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(shadow[name])
        with pytest.raises(FreezeError, match="not saved: frozen entries have moved"):
            model.state_dict()
        frozen.restore()
        assert compare(base, model.state_dict())[0] == 0


class TestOtherWrites:
    """Whatever else writes to the frozen entries is an exception at the next step, also long after the first ones."""

    STEPS = 5

    def trained(self, base: Path) -> tuple[Any, Any]:
        model = load(base)
        optimizer = adamw(model.parameters())
        freeze(model, base, optimizer)
        for seed in range(self.STEPS):
            step(model, optimizer, seed)
        return model, optimizer

    @pytest.mark.parametrize("through_data", [True, False])
    @pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.input_layernorm.weight"])
    def test_clamping(self, base: Path, through_data: bool, name: str) -> None:
        model, optimizer = self.trained(base)
        weight = model.get_parameter(name)
        region = Bundle.load(base).region
        largest = float(weight.detach()[torch.from_numpy(region.mask(name))].abs().max())
        (weight.data if through_data else weight.detach()).clamp_(-0.999 * largest, 0.999 * largest)
        changed = compare(base, {key: value.detach() for key, value in model.named_parameters()})[0]
        assert changed == 1  # the very least that a clamp can do
        with pytest.raises(FreezeError, match=f"tensor '{name}': something other than an optimizer's step"):
            step(model, optimizer)

    def test_one_entry_written_through_autograd(self, base: Path) -> None:
        model, optimizer = self.trained(base)
        indices = Bundle.load(base).region.indices("lm_head.weight")
        with torch.no_grad():
            model.lm_head.weight.view(-1)[int(indices[len(indices) // 3])] += 1e-6
        with pytest.raises(FreezeError, match="something other than an optimizer's step"):
            step(model, optimizer)

    def test_a_row_written_through_data_at_every_step_is_told(self, base: Path) -> None:
        """Autograd counts no such write, and none of the entries is among those that are looked at each time."""
        model = load(base)
        frozen = freeze(model, base)
        optimizer = adamw(model.parameters())
        name = "model.embed_tokens.weight"
        looked_at = _looked_at(frozen, name)
        row = next(
            r for r in range(64) if not looked_at & set(range(32 * r, 32 * r + 32)) and _frozen_in(base, name, r)
        )
        step(model, optimizer)

        def meddle_at_every_step() -> None:
            for seed in range(EVERY + 2):
                model.get_parameter(name).data[row] += 1e-3
                step(model, optimizer, seed)

        with pytest.raises(FreezeError, match=f"'{name}': something other than an optimizer's step"):
            meddle_at_every_step()

    def test_a_row_written_through_data_before_a_save_is_told(self, base: Path, tmp_path: Path) -> None:
        model, _ = self.trained(base)
        model.model.embed_tokens.weight.data[5:9] += 1e-3
        with pytest.raises(FreezeError, match=r"not saved: frozen entries have moved, in 'model.embed_tokens.weight'"):
            model.save_pretrained(tmp_path)

    def test_a_hook_registered_later(self, base: Path) -> None:
        model, optimizer = self.trained(base)
        optimizer.register_step_post_hook(lambda *_: [p.data.mul_(0.99) for p in model.parameters()])
        step(model, optimizer)
        assert compare(base, model.state_dict())[0] == 0
        step(model, optimizer)

    def test_a_gradient_hook_registered_later(self, base: Path) -> None:
        model, optimizer = self.trained(base)

        def noise(parameter: torch.Tensor) -> None:
            parameter.grad.add_(0.01)  # type: ignore[union-attr]

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(noise)
        step(model, optimizer)
        assert compare(base, model.state_dict())[0] == 0

    def test_an_optimizer_made_later(self, base: Path) -> None:
        model, _ = self.trained(base)
        other = torch.optim.SGD([model.lm_head.weight], lr=0.1, weight_decay=0.1)
        step(model, other)
        assert compare(base, model.state_dict())[0] == 0

    def test_sharpness_aware_minimization(self, base: Path) -> None:
        """Its own step is no hooked step; the one of its inner optimizer is."""
        model = load(base)
        frozen = freeze(model, base)
        optimizer = Sam(model.parameters(), lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1))
        for batch in batches(4):
            optimizer.both_steps(model, batch)
        assert frozen.verify() == frozen.entries
        inside, outside = compare(base, model.state_dict())
        assert inside == 0 < outside

    def test_an_optimizer_of_something_else_is_left_alone(self, base: Path) -> None:
        model, _ = self.trained(base)
        other = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        other(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        unrelated = copy.deepcopy(other)
        assert torch.equal(unrelated.weight, other.weight)
        model.requires_grad_(False)
        torch.optim.SGD(model.parameters(), lr=0.1).step()  # holds them, and trains none


def _frozen_in(base: Path, name: str, row: int) -> bool:
    return bool(Bundle.load(base).region.mask(name)[row].any())


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization: climb to the worst place nearby, take the gradient there, step from here."""

    def __init__(self, parameters: Any, inner: Any) -> None:
        super().__init__(parameters, {})
        self.base_optimizer = inner(self.param_groups)
        self.param_groups = self.base_optimizer.param_groups

    def both_steps(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        model(**batch).loss.backward()
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            for parameter in parameters:
                self.state[parameter]["here"] = parameter.data.clone()
                parameter.add_(0.05 * parameter.grad)
        self.zero_grad()
        model(**batch).loss.backward()
        for parameter in parameters:
            parameter.data = self.state[parameter]["here"]
        self.base_optimizer.step()
        self.zero_grad()


def _looked_at(frozen: Any, name: str) -> set[int]:
    return {int(i) for item in frozen.held if item.name == name for i in item.look_indices}


def test_parameters_that_train_only_later(base: Path) -> None:
    """Their gradients are masked before clipping too, from the step after they were switched on."""
    model = load(base)
    model.model.layers.requires_grad_(False)
    optimizer = adamw(model.parameters())
    frozen = freeze(model, base, optimizer)
    step(model, optimizer)
    model.requires_grad_(True)
    for seed in range(3):
        step(model, optimizer, seed)
    inside, outside = compare(base, model.state_dict())
    assert inside == 0
    assert outside > 0.9 * sum(parameter.numel() for parameter in model.parameters()) - frozen.entries
    model(**batches(1)[0]).loss.backward()
    mask = torch.from_numpy(Bundle.load(base).region.mask("model.layers.0.mlp.down_proj.weight"))
    assert not model.model.layers[0].mlp.down_proj.weight.grad[mask].any()


def test_loading_other_values_is_an_error_not_undone(base: Path) -> None:
    model = load(base)
    optimizer = adamw(model.parameters())
    frozen = freeze(model, base, optimizer)
    model.load_state_dict(load(base).state_dict())
    other = {name: tensor + 1 for name, tensor in load(base).state_dict().items()}
    with pytest.raises(FreezeError, match="load_state_dict has brought other values for frozen entries"):
        model.load_state_dict(other)
    frozen.restore()
    with pytest.raises(FreezeError, match="has brought other values"):
        model.lm_head.load_state_dict({"weight": other["lm_head.weight"]})


def test_a_deep_copy_is_not_trained_unfrozen(base: Path) -> None:
    model = load(base)
    optimizer = adamw(model.parameters())
    frozen = freeze(model, base, optimizer)
    twin = copy.deepcopy(model)
    assert compare(base, twin.state_dict()) == (0, 0)
    with pytest.raises(FreezeError, match="a deep copy of a frozen model, in which nothing is frozen"):
        step(twin, adamw(twin.parameters()))
    inner = adamw(twin.parameters())
    freeze(twin, base, inner)
    step(twin, inner)
    inside, outside = compare(base, twin.state_dict())
    assert inside == 0 < outside
    free = copy.deepcopy(model)
    frozen.release(free)
    step(free, adamw(free.parameters()))
    assert compare(base, free.state_dict())[0] > 0
    step(model, optimizer)
    assert frozen.verify() == frozen.entries


def test_a_model_that_was_pickled_whole(base: Path, tmp_path: Path) -> None:
    """As `multiprocessing` does for processes that it spawns; nothing is frozen in what is unpickled there."""
    model = load(base)
    freeze(model, base)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert compare(base, again.state_dict()) == (0, 0)
    with pytest.raises(FreezeError, match="a copy that was pickled of a frozen model, in which nothing is frozen"):
        step(again, adamw(again.parameters()))
    assert compare(base, again.state_dict()) == (0, 0)
    optimizer = adamw(again.parameters())
    freeze(again, base)
    step(again, optimizer)
    inside, outside = compare(base, again.state_dict())
    assert inside == 0 < outside
    free = torch.load(tmp_path / "model.pt", weights_only=False)
    release(free)
    step(free, adamw(free.parameters()))
    assert compare(base, free.state_dict())[0] > 0


def test_a_bfloat16_bundle_on_a_float16_model_is_told_apart(tmp_path: Path) -> None:
    base = make_bundle(tmp_path, torch.bfloat16)
    with pytest.raises(FreezeError, match=r"stored as BF16 but loaded as torch.float16, which does not hold"):
        freeze(load(base, torch.float16), base)
    with pytest.raises(FreezeError, match="made from another base"):
        freeze(load(make_bundle(tmp_path / "other", torch.bfloat16, seed=4), torch.float32), base)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "whole.pt", "last.ckpt"])
def test_verify_saved_reads_files_of_torch_save(base: Path, tmp_path: Path, name: str) -> None:
    state = load(base).state_dict()
    wrapped = {f"net.{key}": value for key, value in state.items()}
    data = {"pytorch_model.bin": state, "whole.pt": {"model": state}, "last.ckpt": {"state_dict": wrapped, "epoch": 1}}
    torch.save(data[name], tmp_path / name)
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt") if name == "pytorch_model.bin" else None
    entries = Bundle.load(base).region.entries
    assert verify_saved(tmp_path, base) == verify_saved(tmp_path / name, base) == entries
    index = int(Bundle.load(base).region.indices("lm_head.weight")[3])
    state["lm_head.weight"].view(-1)[index] += 1e-6
    torch.save(data[name], tmp_path / name)
    with pytest.raises(FreezeError, match=r"frozen entries have changed in 'lm_head.weight'"):
        verify_saved(tmp_path, base)
    torch.save([1, 2], tmp_path / name)
    with pytest.raises(FreezeError, match=r"holds no tensors|not read as weights"):
        verify_saved(tmp_path / name, base)


class TestCost:
    """Structured regions are not lists of indices, and dense ones take a bit an entry."""

    SHAPE = (64, 256)

    @pytest.mark.parametrize(
        ("where", "most"),
        [
            (lambda m: m.__setitem__(slice(None), True), 64 * 8),  # a whole layer
            (lambda m: m.__setitem__(slice(8, 24), True), 16 * 8),  # neighbouring rows
            (lambda m: m.__setitem__([3, 17, 40], True), 3 * 8),  # rows anywhere
            (lambda m: m.__setitem__((slice(None), [5, 90]), True), 2 * 64 * 8),  # columns
            (lambda m: m.__setitem__(np.random.default_rng(0).random(m.shape) < 0.5, True), 64 * 256 / 8),
            (lambda m: m.__setitem__(np.random.default_rng(0).random(m.shape) < 0.1, True), 4 * 64 * 256 * 0.11),
            (lambda m: m.__setitem__(np.random.default_rng(0).random(m.shape) < 0.01, True), 8 * 64 * 256 * 0.013),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_places_take_little_and_are_right(self, where: Any, most: float, dtype: torch.dtype) -> None:
        mask = np.zeros(self.SHAPE, dtype=np.bool_)
        where(mask)
        torch.manual_seed(0)
        layer = torch.nn.Linear(self.SHAPE[1], self.SHAPE[0], bias=False, dtype=dtype)
        before = layer.weight.detach().clone()
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
        frozen = freeze(layer, Region.from_masks({"weight": mask}), optimizer)
        looked_at = 11 * (8 + dtype.itemsize)
        assert frozen.nbytes <= mask.sum() * dtype.itemsize + most + looked_at
        inside = torch.from_numpy(mask)
        for _ in range(4):
            optimizer.zero_grad()
            layer(torch.randn(8, self.SHAPE[1], dtype=dtype)).square().sum().backward()
            assert not layer.weight.grad[inside].any()
            assert layer.weight.grad[~inside].any() or mask.all()
            optimizer.step()
        assert torch.equal(layer.weight[inside], before[inside])
        assert mask.all() or (layer.weight[~inside] != before[~inside]).float().mean() > 0.9
        assert frozen.verify() == int(mask.sum())

    def test_values_of_a_narrower_base_are_kept_narrow(self) -> None:
        layer = torch.nn.Linear(256, 64, bias=False)
        with torch.no_grad():
            layer.weight.copy_(layer.weight.bfloat16())
        mask = np.random.default_rng(0).random((64, 256)) < 0.5
        frozen = freeze(layer, Region.from_masks({"weight": mask}))
        assert frozen.nbytes <= mask.sum() * 2 + 64 * 256 / 8 + 11 * 12
        with torch.no_grad():
            layer.weight.mul_(1.5)
        frozen.restore()
        assert frozen.verify() == mask.sum()
