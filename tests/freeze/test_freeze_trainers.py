"""Trainers of one process, each the real library: what they save to disk is compared with the base, entry by entry."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import byte_tokenizer
from freezing import batches, compare, inside_by_diff, load, make_bundle, saved_state, signs_lost
from safetensors.torch import save_file

from surgeon.errors import FreezeError
from surgeon.freeze import Bundle, FreezeCallback, freeze, merge, verify_saved
from surgeon.region.region import Region

pytest.importorskip("accelerate", reason="the Trainer needs it: pip install '.[trainers]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_bundle(tmp_path_factory.mktemp("base"), torch.bfloat16, vocab_size=258)
    byte_tokenizer().save_pretrained(folder)
    return folder


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Sixteen rows of random tokens."""

    def __init__(self) -> None:
        self.rows = [{key: value[0] for key, value in batch.items()} for batch in batches(16, rows=1)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def check_saved(folder: Path, base: Path, share: float = 0.9) -> None:
    """On disk, nothing inside the region has moved, and most of the rest has."""
    state = saved_state(folder)
    inside, outside = compare(base, state)
    total = sum(tensor.numel() for tensor in state.values())
    assert inside == 0
    assert outside > share * (total - Bundle.load(base).region.entries)
    assert verify_saved(folder, base) == Bundle.load(base).region.entries
    assert inside_by_diff(base, folder) == (Bundle.load(base).region.entries, 0)


def check_moved(folder: Path, base: Path, share: float = 0.9) -> None:
    """Without freezing the same trainer changes the region too, and each of the proofs says so."""
    entries, changed = inside_by_diff(base, folder)
    assert entries == Bundle.load(base).region.entries
    saved = saved_state(folder)
    # Diff compares numbers, for which a zero that lost its sign is what it was.
    assert changed == compare(base, saved)[0] - signs_lost(base, saved) > share * entries
    with pytest.raises(FreezeError, match="frozen entries have changed"):
        verify_saved(folder, base)


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 0.1,
        "weight_decay": 0.1, "save_steps": 2, "logging_steps": 1, "report_to": [], "use_cpu": True, "seed": 1,
        "disable_tqdm": True, "warmup_steps": 1, "max_grad_norm": 0.5,
    }  # fmt: skip
    return {**values, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": "adamw_torch_fused"},
        {"optim": "adamw_torch", "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        {"optim": "adafactor", "bf16": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_trainer(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = load(base, torch.float32)
    callback = FreezeCallback(base)
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**arguments(tmp_path, **changes)),
        train_dataset=Rows(),
        callbacks=[callback],
    )
    trainer.train()
    check_saved(tmp_path / "checkpoint-2", base)
    check_saved(tmp_path / "checkpoint-4", base)
    assert callback.frozen is not None
    assert callback.frozen.verify(model) == Bundle.load(base).region.entries


@pytest.mark.parametrize("optim", ["adamw_torch_8bit", "adamw_torch_4bit"])
def test_trainer_with_low_bit_optimizers(base: Path, tmp_path: Path, optim: str) -> None:
    """They keep their state in tensor subclasses of the parameter's shape."""
    pytest.importorskip("torchao")
    changes = {"optim": optim, "learning_rate": 0.01, "max_steps": 3, "save_steps": 3, "warmup_steps": 0}
    trainer = transformers.Trainer(
        model=load(base, torch.float32),
        args=transformers.TrainingArguments(**arguments(tmp_path, **changes)),
        train_dataset=Rows(),
        callbacks=[FreezeCallback(base)],
    )
    trainer.train()
    check_saved(tmp_path / "checkpoint-3", base)


def test_trainer_refuses_to_go_on_from_a_checkpoint_that_moved(base: Path, tmp_path: Path) -> None:
    """`on_save` looks at what was written, whoever changed it."""

    class Meddler(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            file = tmp_path / f"checkpoint-{state.global_step}" / "model.safetensors"
            save_file({name: tensor + 1 for name, tensor in saved_state(file.parent).items()}, file)

    trainer = transformers.Trainer(
        model=load(base, torch.float32),
        args=transformers.TrainingArguments(**arguments(tmp_path)),
        train_dataset=Rows(),
        callbacks=[Meddler(), FreezeCallback(base)],
    )
    with pytest.raises(FreezeError, match=r"checkpoint-2: frozen entries have changed"):
        trainer.train()


def test_trainer_without_freezing(base: Path, tmp_path: Path) -> None:
    options = transformers.TrainingArguments(**arguments(tmp_path, optim="adamw_torch_fused"))
    transformers.Trainer(model=load(base, torch.float32), args=options, train_dataset=Rows()).train()
    check_moved(tmp_path / "checkpoint-4", base)


def test_trainer_resumes(base: Path, tmp_path: Path) -> None:
    def trainer() -> transformers.Trainer:
        options = arguments(tmp_path, optim="adamw_torch_fused")
        return transformers.Trainer(
            model=load(base, torch.float32),
            args=transformers.TrainingArguments(**options),
            train_dataset=Rows(),
            callbacks=[FreezeCallback(base)],
        )

    trainer().train()
    last = saved_state(tmp_path / "checkpoint-4")
    trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    check_saved(tmp_path / "checkpoint-4", base)
    again = saved_state(tmp_path / "checkpoint-4")
    assert all(torch.equal(last[name], again[name]) for name in last)


def test_trainer_refuses_another_base(base: Path, tmp_path: Path) -> None:
    trainer = transformers.Trainer(
        model=make_other(tmp_path / "other"),
        args=transformers.TrainingArguments(**arguments(tmp_path)),
        train_dataset=Rows(),
        callbacks=[FreezeCallback(base)],
    )
    with pytest.raises(FreezeError, match="not those of tiny"):
        trainer.train()


def make_other(folder: Path) -> Any:
    return load(make_bundle(folder, torch.bfloat16, seed=5, vocab_size=258), torch.float32)


@pytest.mark.parametrize("freezes", [True, False])
def test_trl_sft_trainer(base: Path, tmp_path: Path, freezes: bool) -> None:
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    rows = datasets.Dataset.from_dict({"text": ["All human beings are born free.", "Everyone has the right."] * 8})
    trainer = trl.SFTTrainer(
        model=load(base, torch.float32),
        args=trl.SFTConfig(**arguments(tmp_path, max_length=32, bf16=False)),
        train_dataset=rows,
        processing_class=transformers.AutoTokenizer.from_pretrained(base),
        callbacks=[FreezeCallback(base)] if freezes else [],
    )
    trainer.train()
    for step in (2, 4) if freezes else (4,):  # few embeddings occur in the text, but all decay
        (check_saved if freezes else check_moved)(tmp_path / f"checkpoint-{step}", base, share=0.7)


class LightningRun:
    """A Lightning fit of the base in float32, saved by Lightning and by transformers."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.lightning = pytest.importorskip("lightning.pytorch")

    def module(self) -> Any:
        base = self.base

        class Module(self.lightning.LightningModule):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()
                self.net = load(base, torch.float32)

            def training_step(self, batch: Any, index: int) -> Any:
                return self.net(**batch).loss

            def validation_step(self, batch: Any, index: int) -> None:
                self.log("loss", self.net(**batch).loss)

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
                return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)}

        return Module()

    def fit(self, callbacks: list[Any], checkpoint: Path | None = None, **options: Any) -> None:
        module = self.module()
        trainer = self.lightning.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, gradient_clip_val=0.5,
            enable_model_summary=False, callbacks=callbacks, default_root_dir=self.folder,
            **{"enable_checkpointing": False, "accumulate_grad_batches": 2, **options},
        )  # fmt: skip
        rows = torch.utils.data.DataLoader(Rows(), batch_size=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the number of workers
            trainer.fit(module, rows, rows if "val_check_interval" in options else None, ckpt_path=checkpoint)
        trainer.save_checkpoint(self.folder / "last.ckpt")
        module.net.save_pretrained(self.folder / "saved")


def test_lightning(base: Path, tmp_path: Path) -> None:
    run = LightningRun(base, tmp_path)
    from surgeon.freeze import LightningFreeze

    for steps, before in ((2, None), (4, tmp_path / "last.ckpt")):
        callback = LightningFreeze(base)
        run.fit([callback], before, max_steps=steps)
        saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
        inside, outside = compare(base, {name.removeprefix("net."): tensor for name, tensor in saved.items()})
        assert inside == 0 < outside
        assert callback.frozen is not None
        assert callback.frozen.entries == verify_saved(tmp_path / "last.ckpt", base)
        check_saved(tmp_path / "saved", base)
    run.fit([], max_steps=4)
    check_moved(tmp_path / "saved", base)


@pytest.mark.parametrize("freeze_comes", ["first", "last"])
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_lightning_averages_are_frozen_too(base: Path, tmp_path: Path, kind: str, freeze_comes: str) -> None:
    """In checkpoints on the way too, in validation, which swaps it in, and at the end, where it is the model."""
    run = LightningRun(base, tmp_path)
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    from surgeon.freeze import LightningFreeze

    def averaging() -> Any:
        if kind == "swa":
            return callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1)
        if not hasattr(callbacks, "EMAWeightAveraging"):
            pytest.skip("this Lightning has no EMAWeightAveraging")
        return callbacks.EMAWeightAveraging(decay=0.7)

    def fit(callback: Any, name: str) -> list[Path]:
        checkpoints = callbacks.ModelCheckpoint(dirpath=tmp_path / name, save_top_k=-1, every_n_epochs=1)
        both = [callback, averaging()] if freeze_comes == "first" else [averaging(), callback]
        options = {"val_check_interval": 2, "enable_checkpointing": True, "accumulate_grad_batches": 1}
        run.fit([*(each for each in both if each), checkpoints], max_epochs=3, **options)
        return sorted((tmp_path / name).glob("*.ckpt"))

    callback = LightningFreeze(base)
    written = fit(callback, "frozen")
    entries = Bundle.load(base).region.entries
    assert len(written) >= 3
    # Earlier releases of torch keep a function in the state of SWA's schedule: such a file is not read.
    readable = kind == "ema" or hasattr(torch.optim.swa_utils.SWALR, "_set_anneal_func")
    for file in [*written, tmp_path / "last.ckpt"]:
        saved = torch.load(file, weights_only=False)["state_dict"]
        inside, outside = compare(base, {name.removeprefix("net."): tensor for name, tensor in saved.items()})
        assert inside == 0 < outside, file
        assert not readable or verify_saved(file, base) == entries
    check_saved(tmp_path / "saved", base)
    if freeze_comes == "first":
        fit(None, "free")
        check_moved(tmp_path / "saved", base)


def test_peft_merge_honours_the_mask(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    region = Region.load(base / "freeze" / "region.safetensors")

    def adapted() -> Any:
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        return peft.get_peft_model(load(base, torch.float32), config)

    free = adapted().merge_and_unload().state_dict()
    model = adapted()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    frozen = freeze(model, base, optimizer)  # the adapter trains; the base weights below it do not
    model(**batches(1)[0]).loss.backward()
    optimizer.step()
    frozen.verify()
    frozen.remove()
    merged = merge(model, base)
    merged.save_pretrained(tmp_path)
    assert verify_saved(tmp_path, base) == region.entries
    assert inside_by_diff(base, tmp_path) == (region.entries, 0)
    original, state = load(base, torch.float32).state_dict(), saved_state(tmp_path)
    for name, tensor in state.items():  # W + (1 - M) * dW, written with dense masks
        expected = torch.where(torch.from_numpy(region.mask(name)), original[name], free[name])
        assert torch.equal(tensor, expected), name
    assert compare(base, free)[0] > 0
    with pytest.raises(FreezeError, match="no PEFT model"):
        merge(merged, base)
    double = adapted()
    double.merge_adapter()
    with pytest.raises(FreezeError, match="merged already"):
        merge(double, base)


def test_forgetting_is_measured_while_a_trainer_trains(base: Path, tmp_path: Path) -> None:
    """The figures are those of `surgeon.perplexity` on the same weights, before and after."""
    import json

    from surgeon import perplexity
    from surgeon.forgetting import ForgettingCallback

    model, tokenizer = load(base), byte_tokenizer()
    options = {"languages": ["en"], "tokens": 32, "window": 16}
    before = perplexity(model, tokenizer, **options)["en"].perplexity
    callback = ForgettingCallback(tokenizer, every=2, output=tmp_path / "curve", **options)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=2, learning_rate=0.01, report_to=[],
        use_cpu=True, save_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=Rows(), callbacks=[callback]).train()
    rows = [json.loads(line) for line in (tmp_path / "curve/forgetting.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert rows[0]["perplexity"] == pytest.approx(before)
    assert rows[-1]["perplexity"] == pytest.approx(perplexity(model, tokenizer, **options)["en"].perplexity)
    assert (tmp_path / "curve/forgetting.svg").is_file()
