"""A plain PyTorch loop: whatever the optimizer does, the frozen entries keep their bits and the others train."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from freezing import adamw, assert_held, batches, compare, load, make_bundle, tiny_model, train
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.errors import FreezeError
from surgeon.freeze import Bundle, freeze, verify_saved
from surgeon.freeze.frozen import PASSES
from surgeon.region.region import Region

OPTIMIZERS: dict[str, Any] = {
    "adamw-fused": functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True),
    "adamw-foreach": functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw-loop": functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, foreach=False),
    "amsgrad": functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "sgd-momentum": functools.partial(torch.optim.SGD, lr=1e-1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd-fused": functools.partial(torch.optim.SGD, lr=1e-1, momentum=0.9, weight_decay=0.1, fused=True),
    "adafactor": functools.partial(torch.optim.Adafactor, lr=1e-1, weight_decay=0.1),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9, weight_decay=0.1),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_frozen_entries_keep_their_bits(base: Path, kind: str) -> None:
    model = load(base)
    optimizer = OPTIMIZERS[kind](model.parameters())
    frozen = freeze(model, base, optimizer)
    train(model, optimizer, 4, clip=1.0)
    inside, outside = compare(base, model.state_dict())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert inside == 0
    assert outside > 0.9 * (total - frozen.entries)
    assert frozen.verify() == frozen.verify(model) == frozen.entries == Bundle.load(base).region.entries


def test_without_freezing_the_same_steps_move_them(base: Path) -> None:
    model = load(base)
    train(model, OPTIMIZERS["adamw-fused"](model.parameters()))
    inside, _ = compare(base, model.state_dict())
    assert inside > 0.9 * Bundle.load(base).region.entries


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_width(tmp_path: Path, dtype: torch.dtype) -> None:
    base = make_bundle(tmp_path, dtype)
    model = load(base, dtype)
    optimizer = adamw(model.parameters())
    freeze(model, base, optimizer)
    train(model, optimizer, 3)
    inside, outside = compare(base, model.state_dict())
    assert inside == 0 < outside


def test_a_bfloat16_base_trained_in_float32(tmp_path: Path) -> None:
    base = make_bundle(tmp_path, torch.bfloat16)
    model = load(base, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    frozen = freeze(model, base, optimizer)
    train(model, optimizer)
    assert compare(base, model.state_dict())[0] == 0
    assert frozen.verify(model.bfloat16()) == frozen.entries


def test_the_others_train_as_if_the_frozen_gradients_were_zero(base: Path) -> None:
    """The reference masks gradients before clipping and copies the base back with dense masks after the step."""
    region = Region.load(base / "freeze" / "region.safetensors")
    model, reference = load(base), load(base)
    optimizer, plain = (OPTIMIZERS["adamw-loop"](m.parameters()) for m in (model, reference))
    freeze(model, base, optimizer)
    train(model, optimizer, 5, clip=1.0)
    masks = {name: torch.from_numpy(region.mask(name)) for name, _ in reference.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in reference.named_parameters()}
    for batch in batches(5):
        plain.zero_grad()
        reference(**batch).loss.backward()
        for name, parameter in reference.named_parameters():
            parameter.grad[masks[name]] = 0
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        plain.step()
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                parameter[masks[name]] = before[name][masks[name]]
    for name, parameter in reference.named_parameters():
        assert torch.equal(model.state_dict()[name], parameter.detach()), name


def test_accumulation_schedulers_and_clipping(base: Path) -> None:
    region = Region.load(base / "freeze" / "region.safetensors")
    model = load(base)
    optimizer = OPTIMIZERS["adamw-fused"](model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=4)
    freeze(model, base, optimizer)
    for step, batch in enumerate(batches(12)):
        (model(**batch).loss / 3).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(not gradients[name][torch.from_numpy(region.mask(name))].any() for name in gradients)
        if step % 3 == 2:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
    inside, outside = compare(base, model.state_dict())
    assert inside == 0 < outside


def test_amp_skipped_steps(base: Path) -> None:
    model = load(base)
    optimizer = adamw(model.parameters())
    frozen = freeze(model, base, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    taken = []
    for step, batch in enumerate(batches(5)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        if step in (1, 3):  # an overflow: the scaler leaves this step out
            model.lm_head.weight.grad.fill_(float("inf"))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = model.lm_head.weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        taken.append(not torch.equal(before, model.lm_head.weight))
    assert taken == [True, False, True, False, True]
    assert compare(base, model.state_dict())[0] == 0
    frozen.verify()


def test_gradients_that_were_assigned_are_masked_too(base: Path) -> None:
    region = Region.load(base / "freeze" / "region.safetensors")
    model = load(base)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)  # decay would enter its state
    freeze(model, base, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        mask = torch.from_numpy(region.mask(name))
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert not momentum[mask].any()
        assert momentum[~mask].any()
    assert compare(base, model.state_dict())[0] == 0


def test_tied_weights_are_frozen_under_both_names(tmp_path: Path) -> None:
    base = make_bundle(tmp_path, tie_word_embeddings=True)
    model = load(base)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    optimizer = OPTIMIZERS["adamw-fused"](model.parameters())
    frozen = freeze(model, base, optimizer)
    train(model, optimizer)
    inside, outside = compare(base, model.state_dict())
    assert inside == 0 < outside
    # A model that unties them keeps the entries in both.
    untied = load(base)
    untied.lm_head.weight = torch.nn.Parameter(untied.model.embed_tokens.weight.detach().clone())
    optimizer = OPTIMIZERS["adamw-fused"](untied.parameters())
    both = freeze(untied, base, optimizer)
    train(untied, optimizer)
    name = "model.embed_tokens.weight"
    mask = torch.from_numpy(Region.load(base / "freeze" / "region.safetensors").mask(name))
    original = load(base).state_dict()[name][mask]
    assert both.entries == frozen.entries + int(mask.sum())
    assert torch.equal(untied.lm_head.weight.detach()[mask], original)
    assert torch.equal(untied.model.embed_tokens.weight.detach()[mask], original)
    assert not torch.equal(untied.lm_head.weight, untied.model.embed_tokens.weight)
    assert both.verify(untied) == both.entries
    with torch.no_grad():
        untied.lm_head.weight.add_(1)
    with pytest.raises(FreezeError, match=f"{int(mask.sum())} of {both.entries} frozen entries have moved"):
        both.verify(untied)


@pytest.mark.parametrize("freeze_comes", ["first", "last"])
def test_nothing_is_attached(base: Path, freeze_comes: str) -> None:
    """Two optimizers at once, a third one made later, and an optimizer per parameter after that."""
    model = load(base)
    if freeze_comes == "first":
        frozen = freeze(model, base)
    head = torch.optim.SGD([model.lm_head.weight], lr=0.1, momentum=0.9)
    rest = torch.optim.AdamW([p for p in model.parameters() if p is not model.lm_head.weight], lr=1e-2)
    if freeze_comes == "last":
        frozen = freeze(model, base)

    def steps(*optimizers: Any) -> None:
        for batch in batches(2):
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        assert compare(base, model.state_dict())[0] == 0
        assert frozen.verify() == frozen.entries

    steps(head, rest)
    before = compare(base, model.state_dict())[1]
    steps(torch.optim.Adagrad(model.parameters(), lr=1e-2, weight_decay=0.1))
    steps(*(torch.optim.SGD([p], lr=0.1, weight_decay=0.1) for p in model.parameters()))
    assert before > 0.9 * (sum(p.numel() for p in model.parameters()) - frozen.entries)


def test_remove_lets_them_train_again(base: Path) -> None:
    model = load(base)
    optimizer = OPTIMIZERS["adamw-fused"](model.parameters())
    frozen = freeze(model, base, optimizer)
    train(model, optimizer, 2)
    frozen.verify()
    frozen.remove()
    train(model, optimizer, 2, seed=5)
    assert compare(base, model.state_dict())[0] > 0
    with pytest.raises(FreezeError, match=r"frozen entries have moved, in 'lm_head.weight'"):
        frozen.verify()


def test_restore_is_reversion_after_free_training(base: Path) -> None:
    model = load(base)
    frozen = freeze(model, base)
    frozen.remove()
    train(model, OPTIMIZERS["adamw-fused"](model.parameters()))
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert frozen.restore(model) == frozen.entries
    inside, _ = compare(base, model.state_dict())
    assert inside == 0
    region = Region.load(base / "freeze" / "region.safetensors")
    for name, tensor in model.state_dict().items():
        outside = torch.from_numpy(~region.mask(name))
        assert torch.equal(tensor[outside], trained[name][outside])


@pytest.mark.parametrize(
    "first", [pytest.param(0, marks=pytest.mark.slow, id="all"), pytest.param(2, id="from the third on")]
)
def test_a_compiled_model_whose_steps_are_compiled_too(first: int, base: Path) -> None:
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, foreach=True)
    compiled = torch.compile(model, backend="aot_eager")
    frozen = freeze(compiled, base, optimizer)
    whole_step = torch.compile(optimizer.step, backend="aot_eager")
    for number, batch in enumerate(batches(first + 2)):
        optimizer.zero_grad()
        compiled(**batch).loss.backward()
        if number < first:
            optimizer.step()
        else:
            whole_step()
        inside, outside = compare(base, model.state_dict())
        assert inside == 0 < outside
    assert frozen.verify(compiled) == frozen.entries


def test_the_look_between_steps_makes_no_mask_of_the_frozen_entries(base: Path) -> None:
    """Such a mask takes several times as long as the comparison, and a byte for each entry."""

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    frozen = freeze(load(base), base)
    with Recorded():
        assert not any(item.seems_moved() for item in frozen.held)
    assert "equal" in names
    assert "ne" not in names


def test_negative_zeros_and_nans_keep_their_bits() -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight[0, 0] = -0.0
        layer.weight.view(torch.int32)[3, 3] = 0x7FC00123  # a NaN with a payload
    before = layer.weight.detach().clone().view(torch.int32)
    region = Region.from_indices({"weight": np.array([0, 15])}, {"weight": (4, 4)})
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5)
    frozen = freeze(layer, region, optimizer)
    for _ in range(2):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    after = layer.weight.detach().view(torch.int32)
    assert (after.flatten()[[0, 15]] == before.flatten()[[0, 15]]).all()
    assert frozen.verify() == 2
    with torch.no_grad():
        layer.weight[0, 0] = 0.0
    with pytest.raises(FreezeError, match="1 of 2 frozen entries have moved"):
        frozen.verify()


class TestInTheBackwardPass:
    """What steps inside it through torch is followed; what writes there by itself is told in the next pass."""

    def test_torchs_own_optimizers(self, base: Path) -> None:
        from torch.distributed.optim import _apply_optimizer_in_backward

        model = load(base)
        _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1, "weight_decay": 0.1})
        frozen = freeze(model, base)
        self.passes(base, model, frozen)

    @pytest.mark.parametrize("hook_comes", ["first", "last"])
    def test_a_hook_that_steps(self, base: Path, hook_comes: str) -> None:
        model = load(base)
        inner = {p: torch.optim.SGD([p], lr=0.1, weight_decay=0.1, momentum=0.9) for p in model.parameters()}
        if hook_comes == "last":
            frozen = freeze(model, base)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda tensor: inner[tensor].step())
        if hook_comes == "first":
            frozen = freeze(model, base)
        self.passes(base, model, frozen)

    def passes(self, base: Path, model: Any, frozen: Any) -> None:
        for batch in batches(3):
            model(**batch).loss.backward()
            model.zero_grad()
        inside, outside = compare(base, model.state_dict())
        assert inside == 0
        assert outside > 0.9 * (sum(p.numel() for p in model.parameters()) - frozen.entries)
        assert frozen.verify() == frozen.entries

    def test_one_that_torch_does_not_know(self, base: Path) -> None:
        """LOMO: gradients are used and dropped in hooks on them, and weights are written through `.data`."""
        model = load(base)
        frozen = freeze(model, base)

        def update(_: Any) -> None:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.data.mul_(1 - 0.01)
                    parameter.data.add_(parameter.grad, alpha=-0.1)
                    parameter.grad = None

        for parameter in model.parameters():
            parameter.register_hook(update)
        model(**batches(1)[0]).loss.backward()
        with pytest.raises(FreezeError, match=r"although no step of a torch optimizer took place.*LOMO"):
            model(**batches(1)[0]).loss.backward()
        assert compare(base, dict(model.named_parameters()))[0] > 0
        assert frozen.restore() == frozen.entries

    def test_noise_on_the_weights_of_each_pass(self, base: Path) -> None:
        """Which is taken off again before the step."""
        model = load(base)
        frozen = freeze(model, base)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        for number, batch in enumerate(batches(6)):
            before = [parameter.data.clone() for parameter in model.parameters()]
            for parameter in model.parameters():
                parameter.data.add_(torch.randn_like(parameter) * 1e-3)
            model(**batch).loss.backward()
            for parameter, values in zip(model.parameters(), before, strict=True):
                parameter.data.copy_(values)
            if number % 3 == 2:
                optimizer.step()
        assert_held(base, model, frozen)

    def test_an_optimizer_without_its_base_class(self, base: Path) -> None:
        class Own(torch.optim.Optimizer):
            def __init__(self, parameters: Any) -> None:
                self.param_groups = [{"params": list(parameters)}]

            def step(self, closure: Any = None) -> None:
                for parameter in self.param_groups[0]["params"]:
                    parameter.data.mul_(0.99).add_(parameter.grad, alpha=-0.1)

        model = load(base)
        optimizer = Own(model.parameters())
        with pytest.raises(FreezeError, match=r"did not call torch.optim.Optimizer.__init__"):
            freeze(model, base, optimizer)
        freeze(model, base)
        model(**batches(1)[0]).loss.backward()
        optimizer.step()
        for _ in range(PASSES - 1):
            model(**batches(1)[0]).loss.backward()  # moved weights may be a perturbation, as noise is
        with pytest.raises(FreezeError, match="although no step of a torch optimizer took place"):
            model(**batches(1)[0]).loss.backward()


class TestReplacedAndConverted:
    def test_parameters_replaced_after_freezing(self, base: Path) -> None:
        model = load(base)
        frozen = freeze(model, base)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        train(model, adamw(model.parameters()))
        assert compare(base, model.state_dict())[0] == 0
        assert frozen.verify() == frozen.entries

    def test_trained_in_float32_and_saved_in_bfloat16(self, tmp_path: Path) -> None:
        base = make_bundle(tmp_path, torch.bfloat16)
        model = load(base, torch.float32)
        frozen = freeze(model, base)
        train(model, adamw(model.parameters()))
        model.to(torch.bfloat16)
        model.save_pretrained(tmp_path / "saved")
        assert frozen.verify() == frozen.entries == verify_saved(tmp_path / "saved", base)
        train(model, adamw(model.parameters()))
        inside, outside = compare(base, model.state_dict())
        assert inside == 0 < outside
        with torch.no_grad():
            model.lm_head.weight.add_(1)
        with pytest.raises(FreezeError, match="frozen entries have moved"):
            frozen.verify()


class TestRefusals:
    def test_no_torch_optimizer(self, base: Path) -> None:
        with pytest.raises(FreezeError, match=r"builtins.object is no torch.optim.Optimizer"):
            freeze(load(base), base, object())

    def test_schedule_free_optimizers(self, base: Path) -> None:
        class ScheduleFree(torch.optim.SGD):
            def train(self) -> None: ...

            def eval(self) -> None: ...

        model = load(base)
        optimizer = ScheduleFree(model.parameters(), lr=0.1)
        with pytest.raises(FreezeError, match="schedule-free"):
            freeze(model, base, optimizer)
        freeze(model, base)
        with pytest.raises(FreezeError, match="schedule-free"):
            train(model, optimizer)

    def test_sparse_gradients(self) -> None:
        table = torch.nn.Embedding(8, 4, sparse=True)
        region = Region.from_indices({"weight": np.array([1])}, {"weight": (8, 4)})
        freeze(table, region, torch.optim.SGD(table.parameters(), lr=0.1))
        with pytest.raises(FreezeError, match="gradient is sparse"):
            table(torch.tensor([1])).sum().backward()

    def test_fsdp1(self, base: Path) -> None:
        class FullyShardedDataParallel(torch.nn.Module):
            pass

        model = tiny_model()
        model.model.layers[0].wrapper = FullyShardedDataParallel()
        with pytest.raises(FreezeError, match="FSDP2"):
            freeze(model, base)
