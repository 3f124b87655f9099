"""How far regions agree when the same recipe is scored under other conditions: threads, batches, arithmetic.

    python benchmarks/agreement.py [--model builtin:tiny30] [--samples 64] [--length 256] [--languages ar,es,zh]

Scores the model in a fresh process and an empty cache under each condition, and compares each region with that of the
first condition: the Jaccard index of their entries, and of how many tensors the masks are equal. Sums of floating-point
numbers depend on their order in the last bits, so scores do, and with them which of two nearly equal entries is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from surgeon.region.region import Region

# The condition -> threads, sequences per step, arithmetic.
CONDITIONS = {
    "1 thread, batch 4, float32": (1, 4, "float32"),
    "the same again": (1, 4, "float32"),
    "2 threads": (2, 4, "float32"),
    "batch 1": (1, 1, "float32"),
    "batch 8": (1, 8, "float32"),
    "2 threads, batch 8": (2, 8, "float32"),
    "the weights' own dtype": (1, 4, "native"),
    "own dtype, 2 threads, batch 8": (2, 8, "native"),
}


def recipe(arguments: argparse.Namespace, batch: int, dtype: str) -> dict[str, object]:
    languages = arguments.languages.split(",")
    score = {"kind": "grad_param", "languages": languages, "samples": arguments.samples}
    score |= {"sequence_length": arguments.length, "batch_size": batch, "dtype": dtype}
    return {
        "version": 1, "name": "agreement", "model": arguments.model, "output": "unused",
        "regions": {
            "core-1": {"score": score, "select": {"top": 0.01}},
            "core-5": {"from": "core-1", "select": {"top": 0.05}},
            "bottom-1": {"from": "core-1", "select": {"bottom": 0.01}},
            f"only-{languages[0]}": {"from": "core-1", "select": {"top": 0.01, "monolingual": languages[0]}},
        },
    }  # fmt: skip


def regions(arguments: argparse.Namespace, folder: Path, condition: tuple[int, int, str]) -> dict[str, Region]:
    threads, batch, dtype = condition
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(arguments, batch, dtype)), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "SURGEON_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "surgeon", "score", "recipe.yaml", "--output", "out", "--json"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {name: Region.load(folder / path) for name, path in json.loads(done.stdout).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:tiny30")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--languages", default="ar,es,ru,zh,ko,vi")
    arguments = parser.parse_args()
    if Path(arguments.model).is_dir():
        arguments.model = str(Path(arguments.model).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        first: dict[str, Region] = {}
        for number, (label, condition) in enumerate(CONDITIONS.items()):
            found = regions(arguments, Path(scratch) / str(number), condition)
            first = first or found
            told = []
            for name, region in found.items():
                equal = sum(
                    region.indices(tensor).tobytes() == first[name].indices(tensor).tobytes() for tensor in region
                )
                told.append(f"{name} {region.jaccard(first[name]):.6f} ({equal}/{len(region)})")
            print(f"{label:30} " + "   ".join(told), flush=True)


if __name__ == "__main__":
    main()
