"""Run every setting that is installed here with a frozen model, and print the table of docs/freezing.md.

    python examples/freeze_matrix.py                            # all settings, as a Markdown table
    python examples/freeze_matrix.py --only adamw fsdp2         # those whose name has one of these words
    python examples/freeze_matrix.py --write docs/freezing.md   # put the table between the page's marks

A tiny Llama trains for some steps with 5 % of every tensor frozen, a negative zero and a denormal among them. The
trained weights are compared with the base by this script's own means: raw integers, and indices that were chosen
before the bundle was written. Columns: frozen entries that changed, frozen entries, the share of all others that
changed, frozen places at which the optimizer's moments are not zero, and whether `Frozen.verify` and `verify_saved`
say the same. A setting whose package is missing, or does not run here, is listed with the reason.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
import transformers
from safetensors.torch import load_file, save_file

from surgeon.freeze import Bundle, FreezeCallback, freeze, verify_saved, write_bundle
from surgeon.region.region import Region

STEPS = 4
INTEGERS = {2: torch.int16, 4: torch.int32}
MARKS = ("<!-- freeze_matrix: begin -->", "<!-- freeze_matrix: end -->")
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "prev", "acc_delta")


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


def dirty(base: Path, model: Any, optimizer: Any) -> int:
    chosen, count = np.load(base / "indices.npz"), 0
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        found = [state[key] for key in MOMENTS if key in state and state[key].shape == parameter.shape]
        plain = [value for value in found if type(value) in (torch.Tensor, torch.nn.Parameter)]
        count += sum(int((value.reshape(-1)[torch.from_numpy(chosen[name])] != 0).sum()) for value in plain)
    return count


def save(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return load_file(folder / "model.safetensors")


def result(base: Path, output: Path, model: Any, optimizer: Any, frozen: Any) -> dict[str, Any]:
    found = compare(base, save(model, output / "saved"))
    proof = frozen.verify() == verify_saved(output / "saved", base) == found["frozen"]
    return {**found, "state": dirty(base, model, optimizer), "proof": proof}


def loop(make: Callable[[Any], Any], base: Path, output: Path, compiled: bool = False) -> dict[str, Any]:
    model = load(base)
    optimizer = make(model.parameters())
    frozen = freeze(model, base, optimizer)
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
    return result(base, output, model, optimizer, frozen)


def few(base: Path, output: Path) -> dict[str, Any]:
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, base / "few", optimizer)
    for batch in batches(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    found = compare(base, save(model, output / "saved"), few=True)
    proof = frozen.verify() == verify_saved(output / "saved", base / "few") == found["frozen"]
    return {**found, "state": 0, "proof": proof}


def average(base: Path, output: Path) -> dict[str, Any]:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = load(base)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, base, optimizer)
    frozen.follow(averaged)
    for batch in batches(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
    return result(base, output, averaged.module, optimizer, frozen)


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
    optimizer = getattr(made.optimizer, "optimizer", made.optimizer)
    found = compare(base, load_file(output / f"checkpoint-{STEPS}" / "model.safetensors"))
    assert callback.frozen is not None
    checked = verify_saved(output / f"checkpoint-{STEPS}", base)
    return {**found, "state": dirty(base, model, optimizer), "proof": callback.frozen.verify() == checked}


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
    return {**found, "state": dirty(base, module.net, fitted.optimizers[0]), "proof": proof}


def merge(base: Path, output: Path) -> dict[str, Any]:
    import peft

    from surgeon.freeze import merge as merge_adapter

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    merged = merge_adapter(peft.get_peft_model(load(base), config), base)
    found = compare(base, save(merged, output / "saved"))
    return {**found, "state": 0, "proof": verify_saved(output / "saved", base) == found["frozen"]}


def spread(kind: str, base: Path, output: Path) -> dict[str, Any]:
    """Run a setting in two gloo processes, of which each is this script again."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
    command += ["--worker", kind, str(base), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    if done.returncode:
        raise RuntimeError(next((line for line in done.stderr.splitlines() if "Error" in line), "failed")[:200])
    found = compare(base, load_file(output / "saved" / "model.safetensors"))
    checked = {json.loads((output / f"rank{rank}.json").read_text()) for rank in (0, 1)}
    proof = checked == {verify_saved(output / "saved", base)} == {found["frozen"]}
    return {**found, "state": None, "proof": proof}


def work(kind: str, base: Path, output: Path) -> None:
    distributed.init_process_group("gloo")
    model = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    if kind.startswith("ZeRO"):
        import deepspeed

        config = {
            "train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": int(kind[-1]), "stage3_param_persistence_threshold": 0},
        }  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        frozen = freeze(engine.module, base, engine.optimizer)
        for batch in batches(STEPS, seed=distributed.get_rank()):
            engine.backward(engine(**batch).loss)
            engine.step()
        full = deepspeed.utils.safe_get_full_fp32_param
        state = {name: full(parameter) for name, parameter in engine.module.named_parameters()}
    else:
        frozen, state = _distributed(kind, model, optimizer, base)
    whole = {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in state.items()}
    checked = frozen.verify()
    if distributed.get_rank() == 0:
        (output / "saved").mkdir()
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in whole.items()}
        save_file(tensors, output / "saved" / "model.safetensors")
    (output / f"rank{distributed.get_rank()}.json").write_text(json.dumps(checked))
    distributed.barrier()
    distributed.destroy_process_group()


def _distributed(kind: str, model: Any, optimizer: Any, base: Path) -> tuple[Any, dict[str, Any]]:
    runs: Any = model
    if kind.startswith("DDP"):
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        runs = torch.nn.parallel.DistributedDataParallel(model)
        if "PowerSGD" in kind:
            hook = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=1)
            runs.register_comm_hook(hook, powerSGD_hook.powerSGD_hook)
    elif kind == "FSDP2":
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
    if kind in ("FSDP2", "tensor parallel"):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    frozen = freeze(model, base, optimizer)
    seed = 1 if kind == "tensor parallel" else distributed.get_rank()
    for batch in batches(STEPS, seed):
        optimizer.zero_grad()
        runs(**batch).loss.backward()
        optimizer.step()
    return frozen, model.state_dict()


def of(module: str, name: str, **options: Any) -> Callable[[Any], Any]:
    def make(parameters: Any) -> Any:
        return getattr(importlib.import_module(module), name)(parameters, **options)

    return make


def settings() -> dict[str, tuple[str, Callable[[Path, Path], dict[str, Any]]]]:
    """Name each setting; with it, the package whose version counts."""
    decay = {"weight_decay": 0.1}
    torch_ones = {
        "AdamW, fused": ("AdamW", {"lr": 1e-2, "fused": True, **decay}),
        "AdamW, foreach, AMSGrad": ("AdamW", {"lr": 1e-2, "foreach": True, "amsgrad": True, **decay}),
        "SGD, momentum, coupled decay": ("SGD", {"lr": 0.1, "momentum": 0.9, **decay}),
        "LBFGS": ("LBFGS", {"lr": 0.1, "max_iter": 2}),
        **{
            name: (name, {"lr": 1e-2, **decay})
            for name in ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "ASGD", "RMSprop", "Adafactor")
        },
        "Adadelta": ("Adadelta", {"lr": 1.0, **decay}),
        "Rprop": ("Rprop", {"lr": 1e-2}),
    }
    others = {
        "AdamW8bit (torchao)": ("torchao", "torchao.optim", "AdamW8bit", {"lr": 1e-2, **decay}),
        "AdamW4bit (torchao)": ("torchao", "torchao.optim", "AdamW4bit", {"lr": 1e-2, **decay}),
        "AdamW8bit (bitsandbytes)": ("bitsandbytes", "bitsandbytes.optim", "AdamW8bit", {"lr": 1e-2, **decay}),
        "Lion": ("lion-pytorch", "lion_pytorch", "Lion", {"lr": 1e-2, **decay}),
        "SOAP": ("pytorch_optimizer", "pytorch_optimizer", "SOAP", {"lr": 1e-2, **decay}),
    }
    plain = {
        f"loop, {label}": ("torch", functools.partial(loop, of("torch.optim", name, **options)))
        for label, (name, options) in torch_ones.items()
    }
    low = {
        f"loop, {label}": (package, functools.partial(loop, of(module, name, **options)))
        for label, (package, module, name, options) in others.items()
    }
    fused = of("torch.optim", "AdamW", lr=1e-2, weight_decay=0.1)
    two = ["DDP", "DDP with PowerSGD", "FSDP2", "tensor parallel"]
    return {
        **plain,
        **low,
        "loop, torch.compile": ("torch", functools.partial(loop, fused, compiled=True)),
        "loop, EMA (`swa_utils.AveragedModel`)": ("torch", average),
        "loop, train_only": ("torch", few),
        **{
            f"Trainer, {optim}": ("transformers", functools.partial(trainer, optim=optim))
            for optim in ("adamw_torch_fused", "adafactor", "adamw_torch_8bit", "adamw_torch_4bit")
        },
        "SFTTrainer": ("trl", functools.partial(trainer, kind="SFT")),
        "DPOTrainer": ("trl", functools.partial(trainer, kind="DPO")),
        "Lightning": ("lightning", lightning),
        "Lightning, EMAWeightAveraging": ("lightning", functools.partial(lightning, averaging="EMA")),
        "Lightning, StochasticWeightAveraging": ("lightning", functools.partial(lightning, averaging="SWA")),
        "LoRA merged": ("peft", merge),
        **{f"{kind}, two processes": ("torch", functools.partial(spread, kind)) for kind in two},
        **{f"ZeRO-{i}, two processes": ("deepspeed", functools.partial(spread, f"ZeRO-{i}")) for i in (1, 2, 3)},
    }


def row(name: str, package: str, run: Callable[[Path, Path], dict[str, Any]], base: Path) -> str:
    try:
        label = f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"| {name} | {package} | not installed | | | | |"
    try:
        with tempfile.TemporaryDirectory() as output:
            found = run(base, Path(output))
    except Exception as error:
        traceback.print_exc()
        return f"| {name} | {label} | does not run here: {' '.join(str(error).split())[:90]} | | | | |"
    state = "not read" if found["state"] is None else f"{found['state']}"
    proof = "agrees" if found["proof"] else "DISAGREES"
    share = f"{100 * found['trained']:.0f} %"
    return f"| {name} | {label} | {found['changed']} | {found['frozen']:,} | {share} | {state} | {proof} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words of which a setting's name has one")
    parser.add_argument("--write", type=Path, help="a page to put the table into, between its marks")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.worker:
        work(arguments.worker[0], Path(arguments.worker[1]), Path(arguments.worker[2]))
        return
    python = ".".join(map(str, sys.version_info[:3]))
    head = f"Python {python}, torch {torch.__version__}, transformers {transformers.__version__}, on a CPU.\n\n"
    head += "| setting | package | changed | frozen | others trained | moments not zero | proof |\n" + "|---" * 7 + "|"
    lines = [head]
    with tempfile.TemporaryDirectory() as folder:
        make_base(Path(folder))
        assert Bundle.load(folder).entries
        for name, (package, run) in settings().items():
            if not arguments.only or any(word.lower() in name.lower() for word in arguments.only):
                lines.append(row(name, package, run, Path(folder)))
                print(lines[-1], flush=True)
    if arguments.write:
        before, _, rest = arguments.write.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        table = "\n".join(lines)
        arguments.write.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
