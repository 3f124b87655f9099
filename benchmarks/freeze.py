"""What freezing costs: steps of a frozen and of an unfrozen model, in turn, within one run.

    python benchmarks/freeze.py                      # a random 100-million-parameter Llama
    python benchmarks/freeze.py --model builtin:tiny30 --tokens 128 --length 128 --fraction 0.01

Two equal models take AdamW steps on the same batches, one after the other, the first one now this model and now that
one; in the second half of the run the other one is frozen. The first steps of a half, in which freezing looks at more
than later on, are not counted. `--shape` says what is frozen of every decoder-layer tensor: entries at random places
(the least favourable for a cache), whole rows, whole columns, or all of some layers.

Prints one JSON object. Ratios are medians over pairs of steps, of the processor time and of the wall time; the
processor time inside freezing's own hooks is given as a share of an unfrozen step. Bytes a frozen entry are given for
the values that the model is loaded with (exact in bfloat16, if the checkpoint is) and for trained ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.freeze import Frozen, freeze
from surgeon.region.region import Region

SETTLING = 3  # steps at the start of a half that are not counted
Times = tuple[float, float]  # wall and processor time of a step, in seconds


def build(name: str | None) -> Any:
    torch.manual_seed(0)
    if name is not None:
        folder = Checkpoint.open(name).folder
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = transformers.LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12, vocab_size=24576, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def region_of(model: Any, fraction: float, shape: str) -> Region:
    """Choose a share of every decoder-layer tensor, or all of the first layers."""
    generator = np.random.default_rng(0)
    layers = model.config.num_hidden_layers
    indices, shapes = {}, {}
    for name, parameter in model.named_parameters():
        if ".layers." not in name:
            continue
        mask = np.zeros(tuple(parameter.shape), dtype=np.bool_)
        if shape == "layers":
            mask[:] = int(name.split(".layers.")[1].split(".")[0]) < round(fraction * layers)
        else:
            axis = {"rows": 0, "columns": -1}.get(shape)
            target = mask.reshape(-1) if axis is None or mask.ndim == 1 else np.moveaxis(mask, axis, 0)
            target[generator.choice(len(target), int(fraction * len(target)), replace=False)] = True
        indices[name], shapes[name] = np.flatnonzero(mask), mask.shape
    return Region.from_indices(indices, shapes)


def step(model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> Times:
    started = time.perf_counter(), time.process_time()
    optimizer.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - started[0], time.process_time() - started[1]


class Meter:
    """Processor time spent inside all that freezing does for a model, between its first step and the last."""

    def __init__(self, model: Any, frozen: Frozen) -> None:
        self.seconds = 0.0
        for parameter in model.parameters():
            self._wrap(parameter._post_accumulate_grad_hooks or {})
        frozen.before_step = self._timed(frozen.before_step)  # type: ignore[method-assign]
        frozen.after_step = self._timed(frozen.after_step)  # type: ignore[method-assign]
        frozen._gradients.clean = self._timed(frozen._gradients.clean)  # type: ignore[method-assign]

    def _wrap(self, hooks: dict[int, Callable[..., Any]]) -> None:
        for number, hook in list(hooks.items()):
            hooks[number] = self._timed(hook)

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started = time.process_time()
            result = hook(*arguments)
            self.seconds += time.process_time() - started
            return result

        return timed

    def take(self) -> float:
        """Return the seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def measure(models: list[Any], region: Region, arguments: argparse.Namespace) -> dict[str, Any]:
    """Take all steps; `models` are two equal ones."""
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in models]
    times: dict[str, list[Times]] = {"frozen": [], "unfrozen": []}
    in_hooks: list[float] = []
    taken: list[float] = []
    checked = 0
    for half in (0, 1):
        frozen = freeze(models[half], region)
        meter = Meter(models[half], frozen)
        for number in range(SETTLING + arguments.pairs // 2):
            shape = arguments.tokens // arguments.length, arguments.length
            tokens = torch.randint(0, models[0].config.vocab_size, shape)
            pair = {i: step(models[i], optimizers[i], tokens) for i in ((0, 1) if number % 2 else (1, 0))}
            spent = meter.take()
            if number >= SETTLING:
                times["frozen"].append(pair[half])
                times["unfrozen"].append(pair[1 - half])
                in_hooks.append(spent)
        checked = frozen.verify()
        taken.append(frozen.nbytes / checked)
        frozen.remove()
    ratios = np.median(np.divide(times["frozen"], times["unfrozen"]), axis=0)
    processor = statistics.median(seconds for _, seconds in times["unfrozen"])
    return {
        "frozen_entries": checked,
        "pairs": len(in_hooks),
        "unfrozen_processor_seconds": round(processor, 4),
        "processor_ratio": round(float(ratios[1]), 4),
        "wall_ratio": round(float(ratios[0]), 4),
        "hooks_share_of_unfrozen_step": round(statistics.median(in_hooks) / processor, 4),
        "bytes_per_frozen_entry": {"as_loaded": round(taken[0], 2), "trained": round(taken[1], 2)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; a random 100-million-parameter model if left out")
    parser.add_argument("--fraction", type=float, default=0.05, help="share of every decoder-layer tensor to freeze")
    parser.add_argument("--shape", choices=["random", "rows", "columns", "layers"], default="random")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of steps")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = build(arguments.model).train()
    region = region_of(model, arguments.fraction, arguments.shape)
    settings = {key: getattr(arguments, key) for key in ("fraction", "shape", "tokens", "threads")}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = measure([model, copy.deepcopy(model)], region, arguments)
    print(json.dumps({"parameters": parameters, **settings, **found}, indent=1))


if __name__ == "__main__":
    main()
