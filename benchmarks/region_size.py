"""How large region files are, beside the entropy of their masks and `.pt` files of masks and of indices; decoding.

    python benchmarks/region_size.py [--rows 4096] [--columns 4096] [--rounds 5]

Masks are drawn entry by entry at 1 %, 5 % and 50 %: nothing can be said of such a mask in fewer bits than its entropy.
`decoded` is how many entries of a mask are made of the file's bytes in a second of processor time: as indices, which is
what editing takes, and as a mask of booleans.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from costs import where

from surgeon.region.region import Region


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    shape, draw = (arguments.rows, arguments.columns), np.random.default_rng(0)
    numel = math.prod(shape)
    print(where("torch", "numpy"))
    head = ("share", "bytes", "of entropy", "of .pt mask", "of .pt indices", "indices G/s", "mask G/s")
    print(" ".join(f"{name:>14}" for name in head))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for share in (0.01, 0.05, 0.5):
            mask = draw.random(shape) < share
            Region.from_masks({"t": mask}).save(folder / "r.safetensors")
            torch.save({"t": torch.from_numpy(mask)}, folder / "mask.pt")
            torch.save({"t": torch.from_numpy(np.flatnonzero(mask))}, folder / "indices.pt")
            size = (folder / "r.safetensors").stat().st_size
            p = mask.mean()
            entropy = numel * -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
            ratios = [size / (folder / f"{name}.pt").stat().st_size for name in ("mask", "indices")]
            speeds = []
            for what in ("indices", "flat"):
                best = math.inf
                for _ in range(arguments.rounds):
                    encoded = Region.load(folder / "r.safetensors")["t"]
                    started = time.process_time()
                    getattr(encoded, what)()
                    best = min(best, time.process_time() - started)
                speeds.append(numel / best / 1e9)
            cells = [f"{share:.0%}", f"{size:,}", *(f"{x:.3f}" for x in (size / entropy, *ratios, *speeds))]
            print(" ".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
    main()
