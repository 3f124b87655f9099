"""What selecting the top 1 % of scores costs beside `torch.topk`, in processor time, in turn, one thread.

    python benchmarks/selection.py [--entries 11500000] [--share 0.01] [--rounds 5] [--tensors 4]

The scores are |weight x gradient| as they come: products of two normal numbers. Both find the flat indices of the
highest, sorted; `topk` also has them sorted by index, as a region needs them. `global` is one cut over all tensors,
for which the peer puts them together. Both choose the same entries but for equal scores at the threshold.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from costs import spread, where

from surgeon.region.select import select_extreme


def timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def topk(scores: np.ndarray, share: float) -> np.ndarray:
    found = torch.topk(torch.from_numpy(scores), int(share * scores.size), sorted=False).indices
    return found.sort().values.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=11_500_000)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tensors", type=int, default=4, help="of the cut over all tensors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw, share = np.random.default_rng(0), arguments.share
    made = [
        np.abs(
            draw.standard_normal(arguments.entries, np.float32) * draw.standard_normal(arguments.entries, np.float32)
        )
        for _ in range(arguments.tensors)
    ]
    scores = {f"t{i}": values for i, values in enumerate(made)}
    whole = np.concatenate(made)
    one, every = [("t0", made[0].size)], [(name, values.size) for name, values in scores.items()]
    pairs = {
        "per tensor": (lambda: select_extreme(scores.__getitem__, one, share, "top"), lambda: topk(made[0], share)),
        "global": (lambda: select_extreme(scores.__getitem__, every, share, "top"), lambda: topk(whole, share)),
    }
    print(where("torch", "numpy"))
    for name, (ours, theirs) in pairs.items():
        seconds: list[tuple[float, float]] = []
        for _ in range(arguments.rounds + 1):
            (mine, found), (other, wanted) = timed(ours), timed(theirs)
            seconds.append((mine, other))
        starts = np.cumsum([0, *(values.size for values in made)])
        flat = np.concatenate([found[tensor] + start for tensor, start in zip(found, starts, strict=False)])
        assert np.array_equal(np.sort(whole[flat]), np.sort(whole[np.asarray(wanted)])), "not the highest"
        counted = seconds[1:]
        print(
            f"{name:10} surgeon {statistics.median(a for a, _ in counted):.3f} s, "
            f"topk {statistics.median(b for _, b in counted):.3f} s, topk takes {spread([b / a for a, b in counted])} "
            "times as long"
        )


if __name__ == "__main__":
    main()
