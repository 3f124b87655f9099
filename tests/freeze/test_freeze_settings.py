"""Settings in which entries once moved unseen, or that were refused without need: each holds now, or is told."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from freezing import (
    adamw,
    assert_held,
    batches,
    compare,
    load,
    make_bundle,
    random_region,
    saved_state,
    tiny_model,
    train,
)
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from surgeon.errors import FreezeError
from surgeon.freeze import Bundle, FreezeCallback, freeze, verify_saved, write_bundle
from surgeon.freeze.held import Held
from surgeon.freeze.trained import TrainedEntries
from surgeon.region.region import Region


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("base"))


def half(average: Any, now: Any, _: Any) -> Any:
    return 0.9 * average + 0.1 * now


class TestAverages:
    """An average made before freezing knows nothing of it; it is found when training begins."""

    def test_one_made_before_is_told_when_it_is_saved(self, base: Path, tmp_path: Path) -> None:
        model = load(base)
        averaged = AveragedModel(model, avg_fn=half)
        frozen = freeze(model, base)
        train(model, adamw(model.parameters()), after=lambda: averaged.update_parameters(model))
        assert compare(base, dict(averaged.module.named_parameters()))[0] > 100
        with pytest.raises(FreezeError, match=r"equal to the frozen one holds other values in .*frozen.follow"):
            averaged.module.save_pretrained(tmp_path)
        with pytest.raises(FreezeError, match="equal to the frozen one"):
            averaged.state_dict()
        frozen.follow(averaged)
        averaged.module.save_pretrained(tmp_path)
        inside, outside = compare(base, saved_state(tmp_path))
        assert inside == 0 < outside

    def test_another_model_that_trains_is_left_alone(self, base: Path) -> None:
        """Whichever trains first, and one that is given other weights."""
        model, earlier, later, loaded = (load(base) for _ in range(4))
        frozen = freeze(model, base)
        train(earlier, adamw(earlier.parameters()), 1)
        train(model, adamw(model.parameters()), 1)
        train(later, adamw(later.parameters()), 1)
        loaded.load_state_dict({name: tensor + 1 for name, tensor in load(base).state_dict().items()})
        for each in (earlier, later, loaded):
            assert compare(base, each.state_dict())[0] > 0
        assert frozen.verify() == frozen.entries

    @pytest.mark.parametrize("frozen_before", [True, False])
    def test_train_only_zips_with_an_average(self, tmp_path: Path, frozen_before: bool) -> None:
        """The parameters of the model are those of the plain one, in its order."""
        model = tiny_model()
        model.save_pretrained(tmp_path)
        region = random_region({k: v for k, v in saved_state(tmp_path).items() if "norm" not in k}, 0.02)
        write_bundle(tmp_path, region, base={"name": "tiny"}, train_only=True)
        model = load(tmp_path)
        if frozen_before:
            freeze(model, tmp_path)
        averaged = AveragedModel(load(tmp_path))
        if not frozen_before:
            freeze(model, tmp_path)
        optimizer = adamw(model.parameters())
        train(model, optimizer, after=lambda: averaged.update_parameters(model))
        named = [name for name, _ in load(tmp_path).named_parameters()]
        assert [name for name, _ in model.named_parameters()] == named
        assert [p.shape for p in model.parameters()] == [p.shape for p in averaged.module.parameters()]
        trained, frozen = compare(tmp_path, model.state_dict(), region)
        assert frozen == 0 < trained
        averages, frozen = compare(tmp_path, dict(averaged.module.named_parameters()), region)
        assert 0.9 * trained < averages <= trained
        assert frozen == 0


@pytest.mark.filterwarnings("default")
def test_peft_modules_to_save(base: Path) -> None:
    """PEFT copies the module and trains the copy."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = peft.get_peft_model(load(base), config)
    frozen = freeze(model, base)
    train(model, adamw(p for p in model.parameters() if p.requires_grad))
    live = model.base_model.model.model.embed_tokens.modules_to_save["default"].weight
    name = "model.embed_tokens.weight"
    before, mask = load(base).state_dict()[name], torch.from_numpy(Bundle.load(base).region.mask(name))
    same = live.detach().view(torch.int32) == before.view(torch.int32)
    assert same[mask].all()
    assert not same[~mask].all()
    frozen.verify()
    with torch.no_grad():
        live.mul_(1.5)
    with pytest.raises(FreezeError, match=r"have moved, in 'model.embed_tokens.weight'"):
        frozen.verify()


class TestVerifySaved:
    def test_every_name_of_a_tied_group(self, tmp_path: Path) -> None:
        base = make_bundle(tmp_path / "base", tie_word_embeddings=True)
        state = saved_state(base)
        state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1
        (tmp_path / "untied").mkdir()
        save_file(state, tmp_path / "untied" / "model.safetensors")
        with pytest.raises(FreezeError, match=r"changed in 'model.embed_tokens.weight'"):
            verify_saved(tmp_path / "untied", base)

    @pytest.mark.parametrize("trained", ["model.safetensors", "a.safetensors", "z.safetensors"])
    def test_a_file_beside_the_trained_one_does_not_bless_it(self, base: Path, tmp_path: Path, trained: str) -> None:
        shutil.copy(base / "model.safetensors", tmp_path / "original.safetensors")
        save_file({name: tensor + 1 for name, tensor in saved_state(base).items()}, tmp_path / trained)
        with pytest.raises(FreezeError, match="frozen entries have changed"):
            verify_saved(tmp_path, base)

    def test_files_that_no_loader_reads_say_nothing(self, base: Path, tmp_path: Path) -> None:
        save_file({name: tensor + 1 for name, tensor in saved_state(base).items()}, tmp_path / "old.safetensors")
        names = sorted(saved_state(base))
        files = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(names)}
        for file in set(files.values()):
            save_file({n: saved_state(base)[n] for n in names if files[n] == file}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        assert verify_saved(tmp_path, base) == Bundle.load(base).entries


class TestNotRefused:
    def test_a_cell_of_a_notebook_that_is_run_twice(self, base: Path) -> None:
        model = load(base)
        for _ in range(3):
            optimizer = adamw(model.parameters())
            frozen = freeze(model, base, optimizer)
            train(model, optimizer, 2)
        assert_held(base, model, frozen)
        assert len(model.lm_head.weight._post_accumulate_grad_hooks) == 1

    def test_a_frozen_model_that_nobody_holds_is_freed(self, base: Path) -> None:
        model = load(base)
        freeze(model, base)
        train(model, adamw(model.parameters()), 1)
        known = weakref.ref(model.lm_head.weight)
        del model
        gc.collect()
        assert known() is None

    def test_two_regions_of_one_model(self, base: Path) -> None:
        model = load(base)
        other = random_region(saved_state(base), 0.1, seed=9)
        both = freeze(model, base), freeze(model, other)
        train(model, adamw(model.parameters()))
        assert compare(base, model.state_dict())[0] == compare(base, model.state_dict(), other)[0] == 0
        assert all(frozen.verify() == frozen.entries for frozen in both)

    def test_a_wrapper_that_does_not_call_its_base_class(self, base: Path) -> None:
        """As accelerate's, which is an optimizer by class and none by its state."""

        class Wrapper(torch.optim.Optimizer):
            def __init__(self, optimizer: Any) -> None:
                self.optimizer = optimizer

            param_groups = property(lambda self: self.optimizer.param_groups)  # type: ignore[assignment]

            def step(self, closure: Any = None) -> None:
                self.optimizer.step()

            def zero_grad(self, set_to_none: bool = True) -> None:
                self.optimizer.zero_grad()

        model = load(base)
        optimizer = Wrapper(adamw(model.parameters()))
        frozen = freeze(model, base, optimizer)
        train(model, optimizer)
        assert compare(base, model.state_dict())[0] == 0
        assert frozen.verify() == frozen.entries

    def test_zero_redundancy_optimizer(self, base: Path, tmp_path: Path) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
        try:
            model = load(base)
            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
            frozen = freeze(model, base, optimizer)
            train(model, optimizer)
        finally:
            torch.distributed.destroy_process_group()
        assert_held(base, model, frozen)

    def test_an_optimizer_made_before_its_parameters_required_gradients(self, base: Path) -> None:
        model = load(base).requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        frozen = freeze(model, base)
        optimizer.step()
        model.requires_grad_(True)
        train(model, optimizer)
        assert_held(base, model, frozen)

    def test_each_of_many_optimizers_looks_at_its_own_parameters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With an optimizer per parameter a round is linear in them, not square."""
        looked: list[str] = []
        look = Held.look
        monkeypatch.setattr(Held, "look", lambda item: looked.append(item.name) or look(item))
        model = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(4, 8)) for _ in range(20))
        names = [str(i) for i in range(20)]
        freeze(model, Region.from_indices(dict.fromkeys(names, np.array([1, 5])), dict.fromkeys(names, (4, 8))))
        for parameter in model:
            parameter.grad = torch.ones_like(parameter)
            torch.optim.SGD([parameter], lr=0.1).step()
        assert sorted(looked, key=int) == names


class TestEnlargedVocabulary:
    """New rows train, whatever is in them; the rows that the bundle knows are held, in memory and on disk."""

    @pytest.mark.parametrize("resized", ["before", "after"])
    @pytest.mark.parametrize("tied", [True, False])
    def test_rows_beyond_train(self, tmp_path: Path, tied: bool, resized: str) -> None:
        base = make_bundle(tmp_path / "base", tie_word_embeddings=tied)
        model = load(base)
        if resized == "before":
            model.resize_token_embeddings(75)
        frozen = freeze(model, base)
        if resized == "after":
            model.resize_token_embeddings(75)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, adamw(model.parameters()))
        assert frozen.verify() == frozen.entries == Bundle.load(base).entries
        model.save_pretrained(tmp_path / "saved")
        assert verify_saved(tmp_path / "saved", base) == frozen.entries
        state = saved_state(tmp_path / "saved")
        rows = state["model.embed_tokens.weight"]
        assert rows.shape == (75, 32)
        assert not torch.equal(rows[64:], before["model.embed_tokens.weight"][64:])
        inside, outside = compare(base, {name: t[:64] if t.shape[0] == 75 else t for name, t in state.items()})
        assert inside == 0 < outside
        rows[3] += 1
        save_file(state, tmp_path / "saved" / "model.safetensors")
        with pytest.raises(FreezeError, match=r"frozen entries have changed in 'model.embed_tokens.weight'"):
            verify_saved(tmp_path / "saved", base)

    def test_train_only(self, tmp_path: Path) -> None:
        model = tiny_model()
        model.save_pretrained(tmp_path / "base")
        rows = np.arange(3 * 32, 6 * 32)
        region = Region.from_indices({"model.embed_tokens.weight": rows}, {"model.embed_tokens.weight": (64, 32)})
        write_bundle(tmp_path / "base", region, base={"name": "tiny"}, train_only=True)
        model = load(tmp_path / "base")
        model.resize_token_embeddings(66)
        frozen = freeze(model, tmp_path / "base")
        assert all(isinstance(item, TrainedEntries) for item in frozen.held)
        before = model.model.embed_tokens.weight.detach().clone()
        train(model, adamw(model.parameters()))
        changed = (model.model.embed_tokens.weight != before).any(dim=1).nonzero().view(-1).tolist()
        assert set(changed) <= {3, 4, 5, 64, 65}
        assert {3, 64} & set(changed)
        model.save_pretrained(tmp_path / "saved")
        assert verify_saved(tmp_path / "saved", tmp_path / "base") == Bundle.load(tmp_path / "base").entries

    def test_another_model_with_more_rows_is_refused(self, base: Path) -> None:
        with pytest.raises(FreezeError, match="not those of tiny"):
            freeze(tiny_model(seed=5, vocab_size=80), base)
        with pytest.raises(FreezeError, match=r"its shape is"):
            freeze(tiny_model(vocab_size=80), base / "freeze" / "region.safetensors")


def test_the_bundle_is_found_through_the_model(base: Path, tmp_path: Path) -> None:
    model = load(base)
    assert freeze(model).entries == Bundle.load(base).entries
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(FreezeError, match=r"no freeze/manifest.json there"):
        freeze(load(tmp_path))
    with pytest.raises(FreezeError, match="does not say from which checkpoint"):
        freeze(torch.nn.Linear(2, 2))


class TestTrainOnlyOptimizers:
    def make(self, folder: Path) -> Path:
        model = tiny_model()
        model.save_pretrained(folder)
        matrices = {name: tensor for name, tensor in saved_state(folder).items() if tensor.ndim == 2}
        write_bundle(folder, random_region(matrices, 0.02), base={"name": "tiny"}, train_only=True)
        return folder

    def check(self, base: Path, model: Any, frozen: Any) -> None:
        trained, others = compare(base, model.state_dict(), Region.load(base / "freeze" / "region.safetensors"))
        assert others == 0 < trained
        assert frozen.verify() == frozen.entries

    def test_muon_is_given_whole_matrices(self, tmp_path: Path) -> None:
        if not hasattr(torch.optim, "Muon"):
            pytest.skip("this torch has no Muon")
        base = self.make(tmp_path)
        model = load(base)
        optimizer = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=1e-2, weight_decay=0.1)
        frozen = freeze(model, base, optimizer)
        train(model, optimizer)
        self.check(base, model, frozen)

    @pytest.mark.parametrize("kind", ["sgd", "lbfgs", "adamw"])
    def test_a_step_that_calls_the_model_itself(self, tmp_path: Path, kind: str) -> None:
        """As Lightning's do. SGD and AdamW do what they do without a closure."""
        base = self.make(tmp_path)
        make = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
            "adamw": adamw,
        }[kind]
        model, plain = load(base), load(base)
        optimizer, other = make(model.parameters()), make(plain.parameters())
        frozen = freeze(model, base)
        freeze(plain, base)
        for batch in batches(3):

            def closure(batch: Any = batch) -> Any:
                optimizer.zero_grad()
                loss = model(**batch).loss
                loss.backward()
                return loss

            optimizer.step(closure)
        self.check(base, model, frozen)
        if kind != "lbfgs":
            train(plain, other)
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))

    def test_scaled_and_clipped_gradients(self, tmp_path: Path) -> None:
        base = self.make(tmp_path)
        model, plain = load(base), load(base)
        frozen, optimizer = freeze(model, base), torch.optim.SGD(model.parameters(), lr=0.1)
        freeze(plain, base)
        other = torch.optim.SGD(plain.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for batch in batches(3):
            scaler.scale(model(**batch).loss).backward()
            plain(**batch).loss.backward()
            scaler.unscale_(optimizer)
            norms = [float(torch.nn.utils.clip_grad_norm_(each.parameters(), 0.01)) for each in (model, plain)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-5)
            scaler.step(optimizer)
            scaler.update()
            other.step()
            for each in (optimizer, other):
                each.zero_grad()
        self.check(base, model, frozen)
        assert all(torch.allclose(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestTrainer:
    def trainer(self, base: Path, output: Path, model: Any, *callbacks: Any) -> transformers.Trainer:
        pytest.importorskip("accelerate")
        rows = [{key: value[0] for key, value in batch.items()} for batch in batches(16, rows=1)]
        arguments = transformers.TrainingArguments(
            output_dir=str(output), max_steps=4, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True,
            learning_rate=0.01, weight_decay=0.1, per_device_train_batch_size=2,
        )  # fmt: skip
        return transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=list(callbacks))

    def test_a_new_trainer_after_one_that_was_interrupted(self, base: Path, tmp_path: Path) -> None:
        class Interrupt(transformers.TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                raise KeyboardInterrupt

        model = load(base)
        with pytest.raises(KeyboardInterrupt):
            self.trainer(base, tmp_path, model, FreezeCallback(base), Interrupt()).train()
        callback = FreezeCallback()  # which bundle it is, the model knows
        self.trainer(base, tmp_path, model, callback).train()
        inside, outside = compare(base, saved_state(tmp_path / "checkpoint-4"))
        assert inside == 0 < outside
        assert callback.frozen is not None

    def test_training_goes_on_from_a_checkpoint(self, base: Path, tmp_path: Path) -> None:
        """The bundle lies beside what was written, in the checkpoints and where the model is saved at the end."""
        trainer = self.trainer(base, tmp_path, load(base), FreezeCallback(base))
        trainer.train()
        trainer.save_model()
        for folder in (tmp_path / "checkpoint-2", tmp_path):
            assert verify_saved(folder, folder) == Bundle.load(base).entries
            model = load(folder)
            frozen = freeze(model)
            train(model, adamw(model.parameters()), 2)
            assert frozen.verify() == frozen.entries
            assert compare(base, model.state_dict())[0] == 0

    def test_an_average_put_in_by_a_later_callback_is_told(self, base: Path, tmp_path: Path) -> None:
        class SwapIn(transformers.TrainerCallback):
            def on_train_end(self, *_: Any, **kwargs: Any) -> None:
                for parameter in kwargs["model"].parameters():
                    parameter.data.mul_(0.9999)

        trainer = self.trainer(base, tmp_path, load(base), FreezeCallback(base), SwapIn())
        trainer.train()
        with pytest.raises(FreezeError, match="not saved: frozen entries have moved"):
            trainer.save_model()

    def test_fabric(self, base: Path) -> None:
        fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
        model = load(base)
        optimizer = adamw(model.parameters())
        wrapped, optimizer = fabric.setup(model, optimizer)
        frozen = freeze(wrapped, base, optimizer)
        for batch in batches(3):
            optimizer.zero_grad()
            fabric.backward(wrapped(**batch).loss)
            optimizer.step()
        assert_held(base, model, frozen)


def test_a_copy_is_made_of_a_model_that_trains_few_entries(tmp_path: Path) -> None:
    base = TestTrainOnlyOptimizers().make(tmp_path)
    model = load(base)
    freeze(model, base)
    train(model, adamw(model.parameters()), 2)
    twin = copy.deepcopy(model)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    assert load_file(base / "model.safetensors").keys() == twin.state_dict().keys()
