"""What freezing costs: frozen against unfrozen training steps, taken in turn within one run.

    python benchmarks/freeze.py                      # a random 100-million-parameter Llama
    python benchmarks/freeze.py --model builtin:tiny30 --tokens 2048

Two equal models train on the same batches, one of them with the top share of every tensor frozen at random
places (the least favourable for a cache). Prints one JSON object: median seconds per step, by the clock and of
processor time (which a busy machine disturbs less), their ratios, the processor time spent inside freezing's own
hooks as a share of an unfrozen step (which it disturbs least), and the memory that freezing takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from surgeon.checkpoint import Checkpoint
from surgeon.freeze import Frozen, freeze
from surgeon.region import Region


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


def region_of(model: Any, fraction: float) -> Region:
    generator = np.random.default_rng(0)
    indices, shapes = {}, {}
    for name, parameter in model.named_parameters():
        if ".layers." in name:
            count = int(fraction * parameter.numel())
            indices[name] = np.sort(generator.choice(parameter.numel(), count, replace=False))
            shapes[name] = tuple(parameter.shape)
    return Region.from_indices(indices, shapes)


def step(model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> tuple[float, float]:
    """Return the wall time and the processor time of one step, in seconds."""
    started = time.perf_counter(), time.process_time()
    optimizer.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - started[0], time.process_time() - started[1]


class Meter:
    """Processor time spent inside all hooks that freezing has put on a model and its optimizer."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seconds = 0.0
        for parameter in model.parameters():
            self._wrap(parameter._post_accumulate_grad_hooks or {})
        self._wrap(optimizer._optimizer_step_pre_hooks)
        self._wrap(optimizer._optimizer_step_post_hooks)

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; a random 100-million-parameter model if left out")
    parser.add_argument("--fraction", type=float, default=0.05, help="share of every decoder-layer tensor to freeze")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each kind")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pair: list[tuple[Any, torch.optim.Optimizer]] = []
    for _ in range(2):
        model = build(arguments.model).train()
        pair.append((model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)))
    frozen: Frozen = freeze(pair[1][0], region_of(pair[1][0], arguments.fraction), pair[1][1])
    meter = Meter(*pair[1])
    vocabulary = pair[0][0].config.vocab_size
    in_hooks = []
    timings: list[list[tuple[float, float]]] = [[], []]
    for number in range(arguments.steps + 3):  # the first three warm up
        tokens = torch.randint(0, vocabulary, (arguments.tokens // arguments.length, arguments.length))
        for kind in (0, 1) if number % 2 else (1, 0):
            elapsed = step(*pair[kind], tokens)
            if number >= 3:
                timings[kind].append(elapsed)
        hooks = meter.take()
        if number >= 3:
            in_hooks.append(hooks)
    checked = frozen.verify()
    wall, processor = ([statistics.median(both[clock] for both in kind) for kind in timings] for clock in (0, 1))
    parameters = sum(parameter.numel() for parameter in pair[0][0].parameters())
    result = {
        "parameters": parameters,
        "frozen_entries": checked,
        "tokens_per_step": arguments.tokens,
        "steps": arguments.steps,
        "seconds_unfrozen": round(wall[0], 4),
        "seconds_frozen": round(wall[1], 4),
        "ratio": round(wall[1] / wall[0], 4),
        "processor_seconds": [round(value, 4) for value in processor],
        "processor_ratio": round(processor[1] / processor[0], 4),
        "processor_seconds_in_hooks": round(statistics.median(in_hooks), 5),
        "hooks_share_of_unfrozen_step": round(statistics.median(in_hooks) / processor[0], 4),
        "bytes": frozen.nbytes,
        "bytes_per_frozen_entry": round(frozen.nbytes / checked, 2),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
