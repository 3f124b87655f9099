"""What blocks of quantized weights leave behind in a dequantized checkpoint, by role: a table in Markdown.

    python scripts/quantization_check.py models/SmolLM2-135M-Instruct

Q4_1 stores 32 neighbouring weights of a row as 16 levels between their smallest and their largest. Read back, a block
holds at most 16 values, weights near zero may become zero, and its largest value may stand there several times. It
tells how often that is so, and how far the largest 1 % of a matrix crowd into blocks, beside the same values shuffled.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np

from surgeon.anatomy.scope import scope
from surgeon.checkpoint.checkpoint import Checkpoint

BLOCK = 32  # weights of a row that share a scale
SHARE = 0.01  # of each matrix, by absolute value


def measures(values: np.ndarray, generator: np.random.Generator) -> dict[str, float]:
    """Return what blocks show in one matrix of shape (rows, columns), columns a multiple of the block."""
    blocks = np.sort(values.astype(np.float32).reshape(-1, BLOCK), axis=1)
    size = np.abs(blocks)
    wanted = max(int(SHARE * values.size), 1)
    least = np.partition(size.reshape(-1), values.size - wanted)[values.size - wanted]
    large = size >= least
    shuffled = generator.permutation(large.reshape(-1)).reshape(-1, BLOCK)
    equal = np.zeros(blocks.shape, dtype=np.bool_)
    same = blocks[:, 1:] == blocks[:, :-1]
    equal[:, 1:] |= same
    equal[:, :-1] |= same
    return {
        "entries": values.size,
        "zeros": float(np.count_nonzero(blocks == 0)),
        "blocks": len(blocks),
        "values a block": float(np.count_nonzero(~same) + len(blocks)),
        "large": float(large.sum()),
        "large, equal to another of the block": float((large & equal).sum()),
        "blocks with a large one": float(large.any(axis=1).sum()),
        "the same, shuffled": float(shuffled.any(axis=1).sum()),
    }


def main(name: str) -> None:
    """Print the table."""
    checkpoint = Checkpoint.open(name)
    reach, generator = scope(checkpoint), np.random.default_rng(0)
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for info in reach.tensors:
        if len(info.shape) != 2 or info.shape[1] % BLOCK:
            continue
        for key, value in measures(checkpoint.array(info.name), generator).items():
            for role in (reach.places[info.name].role, "all"):
                found[role][key] += value
    print("| role | exact zeros | values in a block of 32 | largest 1 % that tie within their block |", end="")
    print(" blocks that hold the largest 1 % | the same values shuffled |\n|---|--:|--:|--:|--:|--:|")
    for role in [*(role for role in found if role != "all"), "all"]:
        item = found[role]
        print(
            f"| {role} | {item['zeros'] / item['entries']:.3%} | {item['values a block'] / item['blocks']:.1f} | "
            f"{item['large, equal to another of the block'] / item['large']:.1%} | "
            f"{item['blocks with a large one'] / item['blocks']:.1%} | "
            f"{item['the same, shuffled'] / item['blocks']:.1%} |"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
