"""Two processes that train a frozen model, for each line that comes in: `["SETUP", "BASE", "OUTPUT"]`.

The two are forks of this process, which has the libraries imported, with torchrun's variables in their environment.
They write the trained weights, gathered, to OUTPUT/model.safetensors in the dtype of the master weights, what
`Frozen` says of itself to OUTPUT/rank0.json and rank1.json, and all else to OUTPUT/log; then prints their exit codes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from freezing import batches, load
from safetensors.torch import save_file

from surgeon.errors import FreezeError
from surgeon.freeze import freeze

STEPS = 3
# What the setups import, here once, and not in each of their ranks.
IMPORTED = (
    "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint.state_dict",
    "torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook", "torch._dynamo", "accelerate",
    "transformers.models.llama.modeling_llama", "transformers.trainer",
)  # fmt: skip


def rank() -> int:
    return distributed.get_rank()


def own_batches(count: int) -> list[dict[str, torch.Tensor]]:
    """Other data on each process, the same in every run."""
    return batches(count, seed=10 + rank())


def save(state: dict[str, Any], output: Path) -> None:
    whole = {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in state.items()}
    if rank() == 0:
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in whole.items()}, output)


def report(frozen: Any, output: Path, **more: Any) -> None:
    result = {"entries": frozen.entries, "checked": frozen.verify(), **more}
    (output / f"rank{rank()}.json").write_text(json.dumps(result))


def train_accelerate(setup: str, base: Path, output: Path) -> None:
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    if setup == "accelerate-fsdp2":
        # accelerate offers FSDP only where it sees an accelerator; what it does then runs on a CPU as well.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"], reshard_after_forward=True,
        )  # fmt: skip
    model = load(base, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    frozen = freeze(model, base, optimizer)
    for batch in own_batches(2 * STEPS):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    frozen.verify(model)
    save(accelerator.get_state_dict(model), output / "model.safetensors")
    report(frozen, output, kind=type(model).__name__)


def train_fsdp2_mixed(setup: str, base: Path, output: Path) -> None:
    """`fully_shard` by hand: bfloat16 compute, float32 masters, and tensors that two processes split unevenly."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = load(base, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, base, optimizer)
    for batch in own_batches(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    frozen.verify(model)
    save(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), output / "model.safetensors")
    report(frozen, output)


def whole_master(parameter: Any) -> torch.Tensor:
    """Put the processes' parts together as integers: DeepSpeed adds floats, and loses the sign of a negative zero."""
    from deepspeed.utils import safe_get_full_fp32_param

    if hasattr(parameter, "ds_id"):  # ZeRO-3 gathers them
        return safe_get_full_fp32_param(parameter)
    whole = torch.zeros(parameter.numel(), dtype=torch.int32)
    fragment = parameter._hp_mapping
    if fragment is not None:
        place = fragment.lp_fragment_address
        whole.narrow(0, place.start, place.numel).copy_(fragment.get_hp_fragment().detach().view(torch.int32))
    torch.distributed.all_reduce(whole)
    return whole.view(torch.float32).view(parameter.shape)


def train_deepspeed(setup: str, base: Path, output: Path) -> None:
    import deepspeed
    from deepspeed.utils import safe_get_full_optimizer_state

    stage, half_precision, early = int(setup[4]), setup.endswith("fp16"), setup.endswith("early")
    precision: dict[str, Any] = {"bf16": {"enabled": True}}
    if half_precision:  # the first scale is far too large, so that steps are skipped
        precision = {"fp16": {"enabled": True, "initial_scale_power": 20, "hysteresis": 1}}
    config = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0,
        **precision, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }  # fmt: skip
    model = load(base, torch.float16 if half_precision else torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, base) if early else None
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    frozen = frozen or freeze(engine.module, base, engine.optimizer)
    for batch in own_batches(2 * STEPS * (8 if half_precision else 1)):
        engine.backward(engine(**batch).loss)
        engine.step()
    frozen.verify(engine.module)
    engine.save_checkpoint(str(output / "checkpoint"))
    named = dict(engine.module.named_parameters())
    save({name: whole_master(parameter) for name, parameter in named.items()}, output / "model.safetensors")
    dirty = trained = 0
    for name, parameter in named.items():
        moment = safe_get_full_optimizer_state(parameter, "exp_avg").flatten() != 0
        frozen_here = moment[torch.from_numpy(frozen.bundle.region.indices(name))]
        dirty, trained = dirty + int(frozen_here.sum()), trained + int(moment.sum())
    report(frozen, output, optimizer=type(engine.optimizer).__name__, dirty_moments=dirty, moments=trained,
           skipped_steps=engine.skipped_steps)  # fmt: skip
    half: dict[str, Any] = {}
    for name, parameter in named.items():
        if stage == 3:
            with deepspeed.zero.GatheredParameters([parameter]):
                half[name] = parameter.detach().clone()
        else:
            half[name] = parameter
    (output / "half").mkdir(exist_ok=True)
    save(half, output / "half" / "model.safetensors")


def train_fsdp2_early(setup: str, base: Path, output: Path) -> None:
    """Freeze first and distribute then, an optimizer made last; one process meddles, and both must know and go on."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    model = load(base, torch.float32)
    frozen = freeze(model, base)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for batch in own_batches(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    entries, checked, said = frozen.entries, frozen.verify(), ""
    if rank() == 0:
        for parameter in model.parameters():
            parameter.to_local().data.mul_(1.5)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    try:
        frozen.verify()
    except FreezeError as error:
        said = str(error)
    save(whole, output / "model.safetensors")
    report(frozen, output, said=said, before=checked, share=entries)


def train_tensor_parallel(setup: str, base: Path, output: Path) -> None:
    """Shards of some tensors, replicas of the others; each entry counts once."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = load(base, torch.float32)
    mesh = init_device_mesh("cpu", (2,))
    plan = {**{f"{name}_proj": ColwiseParallel() for name in "qkv"}, "o_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer.self_attn, mesh, plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    frozen = freeze(model, base, optimizer)
    for batch in batches(STEPS):  # every process sees the same data
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    save(model.state_dict(), output / "model.safetensors")
    checked = frozen.verify()
    moved = ""
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    try:
        frozen.verify()
    except FreezeError as error:
        moved = str(error)
    (output / f"rank{rank()}.json").write_text(
        json.dumps({"entries": frozen.entries, "checked": checked, "moved": moved})
    )


def train_powersgd(setup: str, base: Path, output: Path) -> None:
    """DDP with low-rank gradients, which are nowhere zero, and are written after the backward hooks."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
    from torch.nn.parallel import DistributedDataParallel

    model = load(base, torch.float32)
    wrapped = DistributedDataParallel(model)
    state = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=1, start_powerSGD_iter=2, min_compression_rate=1
    )
    wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen = freeze(model, base, optimizer)
    dense = 0
    for batch in own_batches(2 * STEPS):
        optimizer.zero_grad()
        wrapped(**batch).loss.backward()
        gradient = model.lm_head.weight.grad.flatten()
        dense += int((gradient[torch.from_numpy(frozen.bundle.region.indices("lm_head.weight"))] != 0).sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    save(model.state_dict(), output / "model.safetensors")
    report(frozen, output, gradients=dense)


def train_trainer(setup: str, base: Path, output: Path) -> None:
    import transformers

    from surgeon.freeze import FreezeCallback

    callback = FreezeCallback(base)
    trainer = transformers.Trainer(
        model=load(base, torch.float32),
        args=transformers.TrainingArguments(
            output_dir=str(output / "trainer"), use_cpu=True, ddp_backend="gloo", max_steps=STEPS, learning_rate=0.01,
            weight_decay=0.1, per_device_train_batch_size=2, save_strategy="no", report_to=[], disable_tqdm=True,
        ),
        train_dataset=[{key: value[0] for key, value in batch.items()} for batch in batches(16, rows=1)],
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(output))
    report(callback.frozen, output)


SETUPS = {
    "accelerate-ddp": train_accelerate,
    "accelerate-fsdp2": train_accelerate,
    "fsdp2-mixed": train_fsdp2_mixed,
    "trainer-ddp": train_trainer,
    "fsdp2-early": train_fsdp2_early,
    "zero2-early": train_deepspeed,
    "zero3-early": train_deepspeed,
    "tensor-parallel": train_tensor_parallel,
    "powersgd": train_powersgd,
    "zero1": train_deepspeed,
    "zero2": train_deepspeed,
    "zero3": train_deepspeed,
    "zero1-fp16": train_deepspeed,
    "zero2-fp16": train_deepspeed,
    "zero3-fp16": train_deepspeed,
}


def train(setup: str, base: Path, output: Path) -> None:
    if setup in ("fsdp2-mixed", "fsdp2-early", "tensor-parallel", "powersgd"):
        distributed.init_process_group("gloo")
    SETUPS[setup](setup, base, output)
    distributed.barrier()
    distributed.destroy_process_group()


def forked(rank: int, port: int, setup: str, base: Path, output: Path) -> int:
    """Train in a fork of this process; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(240)
        log = os.open(output / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
        os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        train(setup, base, output)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for module in IMPORTED:
        if importlib.util.find_spec(module.partition(".")[0]):
            importlib.import_module(module)
    for line in sys.stdin:
        setup, base, output = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [forked(rank, port, setup, Path(base), Path(output)) for rank in (0, 1)]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


if __name__ == "__main__":
    main()
