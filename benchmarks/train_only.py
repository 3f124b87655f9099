"""The memory of training 1 % of a model's entries against training all of it: two processes, the same steps.

    python benchmarks/train_only.py
    python benchmarks/train_only.py --fraction 0.05

A random 100-million-parameter Llama in float32, AdamW, a few steps of 128 tokens. Prints one JSON object: the peak of
each process's resident memory above what it held when the model was loaded, and the bytes of gradients and of optimizer
state that exist after the last backward pass.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from freeze import build, region_of

from surgeon.freeze import Bundle, freeze
from surgeon.freeze.bundle import FrozenTensor
from surgeon.region.region import Region

STEPS = 3


def peak() -> int:
    """Return the peak of this process's resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bundle_of(model: Any, fraction: float) -> Bundle:
    """Make, in memory, a bundle by which a random share of every decoder-layer tensor trains, and nothing else."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    chosen = region_of(model, fraction, "random")
    nothing = np.empty(0, dtype=np.int64)
    trained = Region.from_indices(
        {name: chosen.indices(name) if name in chosen else nothing for name in shapes}, shapes
    )
    tensors = {
        name: FrozenTensor(name, shape, "F32", int(np.prod(shape)) - trained[name].entries, "", "")
        for name, shape in shapes.items()
    }
    return Bundle(~trained, tensors, source="benchmark", trained=trained)


def child(fraction: float) -> None:
    torch.set_num_threads(1)
    model = build(None).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    before = peak()
    if fraction:
        freeze(model, bundle_of(model, fraction), optimizer, check_values=False)
    for _ in range(STEPS):
        optimizer.zero_grad()
        tokens = torch.randint(0, model.config.vocab_size, (1, 128))
        model(input_ids=tokens, labels=tokens).loss.backward()
        kept = [getattr(p.grad, "kept", p.grad) for p in model.parameters() if p.grad is not None]
        gradients = sum(gradient.nbytes for gradient in kept)
        optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    state = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    found = {"weights": weights, "above_loaded": peak() - before, "gradients": gradients, "state": state}
    print(json.dumps({key: round(value / 2**20, 1) for key, value in found.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=0.01, help="share of every decoder-layer tensor that trains")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, fraction in (("full fine-tuning", 0.0), (f"{arguments.fraction:.0%} trains", arguments.fraction)):
            command = [sys.executable, str(Path(__file__)), "--child", str(fraction)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
            result[name] = json.loads(done.stdout)
    print(json.dumps({"MiB": result}, indent=1))


if __name__ == "__main__":
    main()
