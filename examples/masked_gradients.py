"""What a mask on gradients keeps, and what freezing keeps: entries that move although they have no gradient.

    surgeon apply methods/ssu
    python examples/masked_gradients.py out/ssu/variants/columns

Trains the builtin model for some steps with AdamW, once with the gradients of the frozen entries set to zero and once
with the bundle frozen, in float32 and in bfloat16, and counts the frozen entries whose bits changed. Decoupled weight
decay moves an entry by (learning rate x decay) of its size a step: in bfloat16, whose values lie 2^-8 apart, that
rounds away.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.freeze import freeze
from surgeon.freeze.bundle import Bundle
from surgeon.model.layer_stack import Stack, make_stack
from surgeon.model.model import load_model
from surgeon.text.corpora import builtin_corpus
from surgeon.text.windows import tokenize

LEARNING_RATE, DECAY, LENGTH = 3e-4, 0.01, 256


def load(folder: Path, dtype: torch.dtype) -> Stack:
    """Load a model to be trained in some arithmetic."""
    stack = make_stack(load_model(Checkpoint.open(folder), "float32"))
    stack.loaded.weights.fill()
    stack.loaded.model.to(dtype).requires_grad_()
    return stack


def moved(folder: Path, dtype: torch.dtype, steps: int, promised: bool) -> tuple[int, int]:
    """Train, and return how many of the frozen entries changed, and of how many that are not zero."""
    stack, region = load(folder, dtype), Bundle.load(folder).region
    model = stack.loaded.model
    masks = {name: torch.from_numpy(region.mask(name)) for name in region}
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach()[mask].clone() for name, mask in masks.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
    if promised:
        freeze(model, folder, optimizer)
    ids = torch.tensor(tokenize(stack.loaded.tokenizer, builtin_corpus("udhr30").text("zh").score).ids)
    for step in range(steps):
        start = step * LENGTH % (len(ids) - LENGTH)
        batch = ids[None, start : start + LENGTH]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        for name, mask in masks.items() if not promised else ():
            gradient = parameters[name].grad
            assert gradient is not None
            gradient[mask] = 0
        optimizer.step()
    changed = sum(int((parameters[name].detach()[mask] != before[name]).sum()) for name, mask in masks.items())
    return changed, sum(int((values != 0).sum()) for values in before.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", type=Path, help="a variant with a bundle that freezes, of the builtin model")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    for dtype in (torch.float32, torch.bfloat16):
        for promised in (False, True):
            changed, total = moved(options.variant, dtype, options.steps, promised)
            what = "frozen" if promised else "gradients masked"
            print(
                f"{dtype}, {what}: {changed:,} of {total:,} entries moved ({100 * changed / total:.1f} %)", flush=True
            )


if __name__ == "__main__":
    main()
