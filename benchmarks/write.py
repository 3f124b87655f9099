"""What writing a variant costs beside `cp -r`: wall time as a ratio, and peak anonymous memory.

    python benchmarks/write.py [--gigabytes 2] [--runs 5] [--region 0.01]

Makes a sharded bfloat16 checkpoint of Llama-like tensors with random bytes and a region file of a random 1 % of
its matrices, then runs in turn, each as a fresh process:

    cp      cp -r SOURCE TARGET                                      not flushed
    stage   python: open, load the region, copy and poke             not flushed
    sync    cp -r SOURCE TARGET, then sync of the target             flushed
    write   python: surgeon.write_variant (stage, flush, rename)     flushed
    apply   surgeon apply of the same as a recipe without            flushed
            verification, SHA-256 of inputs and outputs included

and prints each one's median wall time, the ratios to `cp` and to `sync` within each round, and its peak
anonymous memory. `stage` against `cp`, and `write` against `sync`, are like against like.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from surgeon.checkpoint.checkpoint import INDEX_NAME, Checkpoint
from surgeon.checkpoint.naming import scope
from surgeon.checkpoint.storage import allocate_file, map_bytes, view
from surgeon.region.region import Region
from surgeon.region.select import select_random

HIDDEN, WIDE = 2048, 5632
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 4, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE),
}  # fmt: skip

WRITE = """
import surgeon, surgeon.write.staging, sys
from pathlib import Path
from surgeon.operations import OPERATIONS
checkpoint, region = surgeon.Checkpoint.open(sys.argv[1]), surgeon.Region.load(sys.argv[2])
surgeon.write.staging.{function}(checkpoint, [OPERATIONS["zero"](zero="r")], {{"r": region}}, Path(sys.argv[3]))
"""

RECIPE = """
version: 1
name: write
model: {source}
regions: {{r: {{file: {region}}}}}
variants: {{v: {{operations: [{{zero: r}}]}}}}
output: {output}
"""


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Write shards of three layers each until the size is reached."""
    generator = np.random.default_rng(0)
    layer_bytes = 2 * sum(rows * columns for rows, columns in SHAPES.values())
    layers = max(1, round(gigabytes * 1e9 / layer_bytes))
    groups = [range(start, min(start + 3, layers)) for start in range(0, layers, 3)]
    weight_map = {}
    folder.mkdir(parents=True)
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        specs = [(f"model.layers.{i}.{name}.weight", "BF16", shape) for i in group for name, shape in SHAPES.items()]
        header = allocate_file(folder / file, specs, {"format": "pt"})
        data = map_bytes(folder / file, "shared")
        for info in header.tensors.values():
            # Exponents of ordinary weights: random sign and mantissa, values around 0.01.
            words = generator.integers(0, 1 << 16, info.numel, dtype=np.uint16)
            view(data, info).reshape(-1).view(np.uint16)[:] = (words & 0x807F) | 0x3C00
            weight_map[info.name] = file
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))


def make_region(source: Path, path: Path, fraction: float) -> None:
    """Write a random region of the matrices."""
    tensors = scope(Checkpoint.open(source)).tensors
    chosen = {info.name: select_random([(info.name, info.numel)], fraction, 0)[info.name] for info in tensors}
    Region.from_indices(chosen, {info.name: info.shape for info in tensors}).save(path)


def timed(command: list[str], target: Path, environment: dict[str, str]) -> tuple[float, int]:
    """Run a command with an empty target and return its wall seconds and peak anonymous bytes."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(target.with_name(f".{target.name}.staging"), ignore_errors=True)
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed with {process.returncode}")
    return seconds, peak


def anonymous_bytes(pid: int) -> int:
    """Anonymous resident memory of a process (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)


def main() -> None:
    """Make the inputs, run all commands in turn, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--region", type=float, default=0.01)
    parser.add_argument("--scratch", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        source, region, target, recipe = (
            folder / "source",
            folder / "r.safetensors",
            folder / "target",
            folder / "r.yaml",
        )
        make_checkpoint(source, arguments.gigabytes)
        make_region(source, region, arguments.region)
        recipe.write_text(RECIPE.format(source=source, region=region, output=target))
        environment = {**os.environ, "SURGEON_CACHE": str(folder / "cache")}
        commands = {
            "cp": ["cp", "-r", str(source), str(target)],
            "stage": [
                sys.executable,
                "-c",
                WRITE.format(function="stage_variant"),
                *map(str, (source, region, target)),
            ],
            "sync": ["sh", "-c", f"cp -r {source} {target} && find {target} -type f -exec sync {{}} +"],
            "write": [
                sys.executable,
                "-c",
                WRITE.format(function="write_variant"),
                *map(str, (source, region, target)),
            ],
            "apply": [sys.executable, "-m", "surgeon", "apply", str(recipe)],
        }
        results: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
        for _ in range(arguments.runs + 1):
            for name, command in commands.items():
                results[name].append(timed(command, target, environment))
        size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
        shards = len(list(source.glob("*.safetensors")))
        print(f"{size:.2f} GB in {shards} shards; {arguments.runs} runs after one warm-up")
        print_table({name: measured[1:] for name, measured in results.items()})


def print_table(results: dict[str, list[tuple[float, int]]]) -> None:
    """Print medians, ratios within each round (minimum, median, maximum) and peaks."""
    print(f"{'':6} {'median s':>9} {'ratio to cp':>18} {'ratio to sync':>18} {'peak anonymous MB':>18}")
    for name, measured in results.items():
        columns = []
        for reference in ("cp", "sync"):
            ratios = sorted(a / b for (a, _), (b, _) in zip(measured, results[reference], strict=True))
            columns.append(f"{ratios[0]:.2f} {statistics.median(ratios):.2f} {ratios[-1]:.2f}")
        seconds = statistics.median(seconds for seconds, _ in measured)
        peak = max(peak for _, peak in measured) / 1e6
        print(f"{name:6} {seconds:9.2f} {columns[0]:>18} {columns[1]:>18} {peak:18.0f}")


if __name__ == "__main__":
    main()
