"""The settings of freeze_matrix.py: a tiny Llama, the ways to train it, and how the outcome is counted.

Settings of several processes run this file again, in each of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
import transformers
from safetensors.torch import load_file, save_file

from surgeon.errors import FreezeError
from surgeon.freeze import FreezeCallback, freeze, verify_saved, write_bundle
from surgeon.region.region import Region

STEPS = 4
INTEGERS = {2: torch.int16, 4: torch.int32}


def make_base(folder: Path) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=66, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
            pad_token_id=2,
        )
    )  # fmt: skip
    generator = np.random.default_rng(0)
    indices = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            count = max(3, parameter.numel() // 20)
            indices[name] = np.sort(generator.choice(parameter.numel(), count, replace=False))
            parameter.view(-1)[int(indices[name][0])] = -0.0
            parameter.view(-1)[int(indices[name][1])] = 1e-40
    model.bfloat16().save_pretrained(folder)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    write_bundle(folder, Region.from_indices(indices, shapes), base={"name": "tiny", "revision": None})
    np.savez(folder / "indices.npz", **indices)
    few = {name: chosen[::3] for name, chosen in indices.items()}
    (folder / "few").mkdir()
    model.save_pretrained(folder / "few")
    write_bundle(folder / "few", Region.from_indices(few, shapes), base={"name": "tiny"}, train_only=True)


def load(base: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)


def batches(count: int, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(3, 66, (2, 16), generator=generator) for _ in range(count)]
    return [{"input_ids": each, "labels": each.clone()} for each in tokens]


def compare(base: Path, state: dict[str, torch.Tensor], few: bool = False) -> dict[str, Any]:
    """Count changes at the frozen places and elsewhere, from raw bits."""
    chosen = np.load(base / "indices.npz")
    changed = frozen = others = moved = 0
    for name, before in load_file(base / "model.safetensors").items():
        after = state[name].detach().cpu().contiguous()
        kind = INTEGERS[after.element_size()]
        differs = (before.to(after.dtype).view(kind) != after.view(kind)).numpy().reshape(-1)
        mask = np.zeros(differs.size, dtype=np.bool_)
        mask[chosen[name][::3] if few else chosen[name]] = True
        mask = ~mask if few else mask
        changed, frozen = changed + int(differs[mask].sum()), frozen + int(mask.sum())
        moved, others = moved + int(differs[~mask].sum()), others + int((~mask).sum())
    return {"changed": changed, "frozen": frozen, "trained": moved / others}


def save(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return load_file(folder / "model.safetensors")


def result(base: Path, output: Path, model: Any, frozen: Any) -> dict[str, Any]:
    found = compare(base, save(model, output / "saved"))
    proof = frozen.verify() == verify_saved(output / "saved", base) == found["frozen"]
    return {**found, "proof": proof}


def loop(make: Callable[[Any], Any], base: Path, output: Path, compiled: bool = False) -> dict[str, Any]:
    model = load(base)
    optimizer = make(model.parameters())
    frozen = freeze(model, base)
    runs = torch.compile(model, backend="aot_eager") if compiled else model
    for batch in batches(STEPS):

        def closure(batch: Any = batch) -> Any:
            optimizer.zero_grad()
            loss = runs(**batch).loss
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return result(base, output, model, frozen)


def few(base: Path, output: Path) -> dict[str, Any]:
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, base / "few")
    for batch in batches(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    found = compare(base, save(model, output / "saved"), few=True)
    proof = frozen.verify() == verify_saved(output / "saved", base / "few") == found["frozen"]
    return {**found, "proof": proof}


def average(base: Path, output: Path) -> dict[str, Any]:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = load(base)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, base)
    frozen.follow(averaged)
    for batch in batches(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
    return result(base, output, averaged.module, frozen)


def order(kind: str, base: Path, output: Path) -> dict[str, Any]:
    """Train with several optimizers, one of them made late, in some order of freezing and of what else is done."""
    model = load(base)
    frozen = freeze(model, base)
    if kind == "run twice":
        frozen = freeze(model, base)
    if kind == "replaced":
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    if kind == "enlarged":
        model.resize_token_embeddings(72)
    half = list(model.parameters())[::2]
    rest = [parameter for parameter in model.parameters() if not any(parameter is each for each in half)]
    optimizers = [torch.optim.SGD(half, lr=0.1, momentum=0.9, weight_decay=0.1)]
    for batch in batches(STEPS):
        model.zero_grad()
        model(**batch).loss.backward()
        if len(optimizers) == 1:
            optimizers.append(torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.1))
        for optimizer in optimizers:
            optimizer.step()
    if kind == "converted":
        model.bfloat16()
    state = save(model, output / "saved")
    found = compare(base, {name: tensor[:66] if len(tensor) == 72 else tensor for name, tensor in state.items()})
    return {**found, "proof": frozen.verify() == verify_saved(output / "saved", base) == found["frozen"]}


def sharpness(base: Path, output: Path) -> dict[str, Any]:
    """Climb along the gradient, take it there, go back and step."""
    model = load(base)
    frozen = freeze(model, base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for batch in batches(STEPS):
        model(**batch).loss.backward()
        before = [parameter.data.clone() for parameter in model.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * parameter.grad)  # type: ignore[operator]
        model.zero_grad()
        model(**batch).loss.backward()
        for parameter, values in zip(model.parameters(), before, strict=True):
            parameter.data = values
        optimizer.step()
        model.zero_grad()
    return result(base, output, model, frozen)


def told(kind: str, base: Path, output: Path) -> dict[str, Any]:
    """Break the promise; what is changed is counted when it is told."""
    from torch.optim.swa_utils import AveragedModel

    model = load(base)
    averaged = AveragedModel(model, avg_fn=lambda average, now, _: 0.9 * average + 0.1 * now)
    freeze(model, base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

    def lomo(_: Any) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data.mul_(0.99).add_(parameter.grad, alpha=-0.1)
                parameter.grad = None

    if kind == "in backward":
        for parameter in model.parameters():
            parameter.register_hook(lomo)
    counted, at = (averaged.module if kind == "average" else model), "never"
    try:
        for number, batch in enumerate(batches(STEPS), 1):
            at = f"in step {number}"
            model(**batch).loss.backward()
            if kind == "clamped" and number == 2:
                for parameter in model.parameters():
                    parameter.data.clamp_(-0.1, 0.1)
            if kind != "in backward":
                optimizer.step()
            optimizer.zero_grad()
            averaged.update_parameters(model)
        at = "at the save"
        counted.state_dict()
        at = "never"
    except FreezeError:
        pass
    found = compare(base, {name: parameter.detach() for name, parameter in counted.named_parameters()})
    return {**found, "proof": at != "never", "told": at}


def trainer(base: Path, output: Path, kind: str = "Trainer", **changes: Any) -> dict[str, Any]:
    options = {
        "output_dir": str(output), "per_device_train_batch_size": 2, "max_steps": STEPS, "learning_rate": 0.01,
        "weight_decay": 0.1, "save_steps": STEPS, "report_to": [], "use_cpu": True, "disable_tqdm": True, **changes,
    }  # fmt: skip
    callback, model = FreezeCallback(base), load(base)
    if kind == "Trainer":
        rows = [{key: value[0] for key, value in batch.items()} for batch in batches(2 * STEPS)]
        arguments = transformers.TrainingArguments(**options)
        made = transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback])
    else:
        made = _trl(kind, model, options, callback)
    made.train()
    found = compare(base, load_file(output / f"checkpoint-{STEPS}" / "model.safetensors"))
    assert callback.frozen is not None
    checked = verify_saved(output / f"checkpoint-{STEPS}", base)
    return {**found, "proof": callback.frozen.verify() == checked}


def _trl(kind: str, model: Any, options: dict[str, Any], callback: Any) -> Any:
    import datasets
    import trl
    from tokenizers import Tokenizer, models

    words = {"<s>": 0, "</s>": 1, "<pad>": 2, **{chr(97 + i % 26) + str(i): 3 + i for i in range(63)}}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<s>")), bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    )  # fmt: skip
    texts = ["a0 b1 c2 d3", "e4 f5 g6 h7"] * STEPS
    rows = {"text": texts} if kind == "SFT" else {"prompt": texts, "chosen": texts[::-1], "rejected": texts}
    config, made = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
    return made(
        model=model, args=config(**options, max_length=32, bf16=False), processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict(rows), callbacks=[callback],
    )  # fmt: skip


def lightning(base: Path, output: Path, averaging: str | None = None) -> dict[str, Any]:
    import lightning.pytorch as pl
    from lightning.pytorch import callbacks

    from surgeon.freeze import LightningFreeze

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = load(base)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)

    kinds: dict[str, Callable[[], Any]] = {
        "EMA": lambda: callbacks.EMAWeightAveraging(decay=0.7),
        "SWA": lambda: callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1),
    }
    module, callback = Module(), LightningFreeze(base)
    more = [kinds[averaging]()] if averaging else []
    fitted = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[callback, *more], default_root_dir=output,
    )  # fmt: skip
    rows = [{key: value[0] for key, value in batch.items()} for batch in batches(8)]
    fitted.fit(module, torch.utils.data.DataLoader(rows, batch_size=2))  # type: ignore[arg-type]
    fitted.save_checkpoint(output / "last.ckpt")
    saved = torch.load(output / "last.ckpt", weights_only=False)["state_dict"]
    found = compare(base, {name.removeprefix("net."): tensor for name, tensor in saved.items()})
    proof = verify_saved(output / "last.ckpt", base) == found["frozen"]
    return {**found, "proof": proof}


def merge(base: Path, output: Path) -> dict[str, Any]:
    import peft

    from surgeon.freeze import merge as merge_adapter

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    merged = merge_adapter(peft.get_peft_model(load(base), config), base)
    found = compare(base, save(merged, output / "saved"))
    return {**found, "proof": verify_saved(output / "saved", base) == found["frozen"]}


def merge_few(kind: str, base: Path, output: Path) -> dict[str, Any]:
    """Merge an adapter of PEFT where few entries train: SHiRA on these, saved and loaded by PEFT, or a LoRA."""
    import peft

    from surgeon.freeze import merge as merge_adapter
    from surgeon.freeze import shira

    if kind == "LoRA":
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        merged = merge_adapter(peft.get_peft_model(load(base), config), base / "few")
    else:
        region = Region.load(base / "few" / "freeze" / "region.safetensors")
        adapted = shira(load(base), region.only(name for name in region if "_proj" in name))
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
        for batch in batches(STEPS):
            optimizer.zero_grad()
            adapted(**batch).loss.backward()
            optimizer.step()
        adapted.save_pretrained(output / "adapter")
        merged = peft.PeftModel.from_pretrained(load(base), output / "adapter").merge_and_unload()
    found = compare(base, save(merged, output / "saved"), few=True)
    return {**found, "proof": verify_saved(output / "saved", base / "few") == found["frozen"]}


def spread(kind: str, base: Path, output: Path) -> dict[str, Any]:
    """Run a setting in two gloo processes, of which each is this script again."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
    command += [kind, str(base), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    if done.returncode:
        raise RuntimeError(next((line for line in done.stderr.splitlines() if "Error" in line), "failed")[:200])
    found = compare(base, load_file(output / "saved" / "model.safetensors"))
    reports = [json.loads((output / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    proof = set(reports) == {verify_saved(output / "saved", base)} == {found["frozen"]}
    return {**found, "proof": proof}


def work(kind: str, base: Path, output: Path) -> None:
    """Train in one of the processes; the first one saves the weights, each reports what it has verified."""
    distributed.init_process_group("gloo")
    run = _deepspeed if kind.startswith("ZeRO") else _distributed
    frozen, state = run(kind, base)
    whole = {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in state.items()}
    checked = frozen.verify()
    if distributed.get_rank() == 0:
        (output / "saved").mkdir()
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in whole.items()}
        save_file(tensors, output / "saved" / "model.safetensors")
    (output / f"rank{distributed.get_rank()}.json").write_text(json.dumps(checked))
    distributed.barrier()
    distributed.destroy_process_group()


def _deepspeed(kind: str, base: Path) -> tuple[Any, dict[str, Any]]:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": int(kind[5]), "stage3_param_persistence_threshold": 0},
    }  # fmt: skip
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    early = freeze(model, base) if kind.endswith("before") else None
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    frozen = early or freeze(engine.module, base)
    for batch in batches(STEPS, seed=distributed.get_rank()):
        engine.backward(engine(**batch).loss)
        engine.step()
    named = list(engine.module.named_parameters())
    state = {name: _whole_master(parameter) for name, parameter in named}
    engine.save_checkpoint(str(base / kind), tag="last")
    return frozen, state


def _whole_master(parameter: Any) -> torch.Tensor:
    """Put the processes' parts together as integers: DeepSpeed adds floats, and loses the sign of a negative zero."""
    import deepspeed

    if hasattr(parameter, "ds_id"):  # ZeRO-3 gathers them
        return deepspeed.utils.safe_get_full_fp32_param(parameter)
    whole = torch.zeros(parameter.numel(), dtype=torch.int32)
    fragment = parameter._hp_mapping
    if fragment is not None:
        place = fragment.lp_fragment_address
        whole.narrow(0, place.start, place.numel).copy_(fragment.get_hp_fragment().detach().view(torch.int32))
    distributed.all_reduce(whole)
    return whole.view(torch.float32).view(parameter.shape)


def _distributed(kind: str, base: Path) -> tuple[Any, dict[str, Any]]:
    model = load(base)
    early = freeze(model, base) if kind.endswith("frozen before") else None
    runs: Any = model
    if kind.startswith("DDP"):
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        runs = torch.nn.parallel.DistributedDataParallel(model)
        if "PowerSGD" in kind:
            hook = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=1)
            runs.register_comm_hook(hook, powerSGD_hook.powerSGD_hook)
    elif kind.startswith("FSDP2"):
        from torch.distributed.fsdp import fully_shard

        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        plan = {**{f"{name}_proj": ColwiseParallel() for name in "qkv"}, "o_proj": RowwiseParallel()}
        for layer in model.model.layers:
            parallelize_module(layer.self_attn, init_device_mesh("cpu", (2,)), plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    frozen = early or freeze(model, base)
    seed = 1 if kind == "tensor parallel" else distributed.get_rank()
    for batch in batches(STEPS, seed):
        optimizer.zero_grad()
        runs(**batch).loss.backward()
        optimizer.step()
    return frozen, model.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
