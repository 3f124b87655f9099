"""What freezing costs: frozen against unfrozen training steps of one model, taken in turn within one run.

    python benchmarks/freeze.py                      # a random 100-million-parameter Llama
    python benchmarks/freeze.py --model builtin:tiny30 --tokens 2048

A share of every tensor is frozen at random places (the least favourable for a cache), and is let go again for
every other round of steps; it is one and the same model, because two equal ones need not lie equally in memory. The
first steps of a round, in which freezing looks at more than later on, are not counted. Prints one JSON object: seconds
per step, unfrozen and frozen, of the fastest step (what a busy machine disturbs least) and of the median one, and their
ratios; the processor time spent inside freezing's own hooks, as a share of an unfrozen step; and the memory it takes.
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

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.freeze import freeze
from surgeon.region.region import Region

SETTLING = 2  # steps at the start of a round that are not counted


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
    """Processor time spent inside all hooks that freezing has put on a model and its optimizer, if any."""

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
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each kind, in turn")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = build(arguments.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    region = region_of(model, arguments.fraction)
    vocabulary = model.config.vocab_size
    timings: dict[str, list[list[tuple[float, float]]]] = {"unfrozen": [], "frozen": []}
    in_hooks = []
    checked = taken = 0
    for number in range(2 * arguments.rounds + 1):  # the first round warms up
        frozen = freeze(model, region, optimizer) if number % 2 == 0 else None
        meter = Meter(model, optimizer)
        steps = []
        for _ in range(SETTLING + arguments.steps):
            tokens = torch.randint(0, vocabulary, (arguments.tokens // arguments.length, arguments.length))
            steps.append((*step(model, optimizer, tokens), meter.take()))
        if number:
            timings["frozen" if frozen else "unfrozen"].append([(wall, cpu) for wall, cpu, _ in steps[SETTLING:]])
        if frozen is not None:
            in_hooks += [seconds for *_, seconds in steps[SETTLING:]] if number else []
            checked, taken = frozen.verify(), frozen.nbytes
            frozen.remove()
    best = [min(wall for round in rounds for wall, _ in round) for rounds in timings.values()]
    medians = [statistics.median(wall for round in rounds for wall, _ in round) for rounds in timings.values()]
    processor = statistics.median(seconds for round in timings["unfrozen"] for _, seconds in round)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result = {
        "parameters": parameters,
        "frozen_entries": checked,
        "tokens_per_step": arguments.tokens,
        "steps": arguments.steps * arguments.rounds,
        "best_seconds": [round(value, 4) for value in best],
        "best_ratio": round(best[1] / best[0], 4),
        "median_seconds": [round(value, 4) for value in medians],
        "median_ratio": round(medians[1] / medians[0], 4),
        "processor_seconds_in_hooks": round(statistics.median(in_hooks), 5),
        "hooks_share_of_unfrozen_step": round(statistics.median(in_hooks) / processor, 4),
        "bytes": taken,
        "bytes_per_frozen_entry": round(taken / checked, 2),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
