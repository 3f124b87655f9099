"""What `surgeon diff` costs beside a plain comparison: wall time as a ratio, and peak anonymous memory.

    python benchmarks/diff.py [--gigabytes 1] [--runs 3] [--region 0.01] [--jobs 1]

Makes the sharded checkpoint of benchmarks/write.py, a copy of it, and a variant of it with a random 1 % of its matrices
zeroed, then runs in turn, each as a fresh process:

    cmp     cmp of every file with its equal copy, one after the other
    equal   surgeon diff of the two equal copies

    load    torch: load the checkpoint and the variant whole, compare tensor by tensor
    lazy    torch: the same with safetensors' safe_open, two tensors in memory at a time
    diff    surgeon diff of the two, with --jobs threads
    region  surgeon diff --region with the zeroed region, inside and outside told apart

The plain ones compute per tensor what `diff` does, in float32 instead of float64: changed entries, zeros, sign
flips, L2, relative change, largest, changed entries per row and column. All find the same counts, or it says so.
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
from pathlib import Path

from write import WRITE, make_checkpoint, make_region, timed

PLAIN = """
import json, sys
from pathlib import Path
import torch
from safetensors import safe_open
from safetensors.torch import load_file

torch.set_num_threads(int(sys.argv[4]))
lazy = sys.argv[3] == "lazy"

def tensors(folder):
    for path in sorted(Path(folder).glob("*.safetensors")):
        if lazy:
            with safe_open(path, "pt") as file:
                yield from ((name, file.get_tensor(name)) for name in file.keys())
        else:
            yield from load_file(path).items()

pairs = zip(tensors(sys.argv[1]), tensors(sys.argv[2])) if lazy else (
    lambda a, b: ((item, (item[0], b[item[0]])) for item in a.items()))(*(dict(tensors(f)) for f in sys.argv[1:3]))
changed = flips = 0
for (name, before), (_, after) in pairs:
    differ = before.view(torch.int16) != after.view(torch.int16)
    old, new = before.float(), after.float()
    delta = new - old
    found = [delta.norm(), delta.norm() / old.norm(), delta.abs().max(), ((new == 0) & (old != 0)).sum(),
             differ.sum(0).max(), differ.sum(-1).max()]
    flips += int((torch.sign(old) * torch.sign(new) < 0).sum())
    changed += int(differ.sum())
print(json.dumps({"changed": changed, "sign_flips": flips}))
"""


def main() -> None:
    """Make the inputs, check that all count alike, run them in turn, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--region", type=float, default=0.01)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        source, target, region, copy = (folder / name for name in ("source", "target", "r.safetensors", "copy"))
        make_checkpoint(source, arguments.gigabytes)
        shutil.copytree(source, copy)
        make_region(source, region, arguments.region)
        write = WRITE.format(function="write_variant")
        subprocess.run([sys.executable, "-c", write, *map(str, (source, region, target))], check=True)
        jobs = str(arguments.jobs)
        plain = [sys.executable, "-c", PLAIN, str(source), str(target)]
        diff = [sys.executable, "-m", "surgeon", "diff", str(source), str(target), "--json", "--jobs", jobs]
        compared = f"for f in {source}/*; do cmp $f {copy}/$(basename $f) || exit 1; done"
        equal = [sys.executable, "-m", "surgeon", "diff", str(source), str(copy), "--json", "--jobs", jobs]
        commands = {
            "load": [*plain, "load", jobs], "lazy": [*plain, "lazy", jobs],
            "diff": diff, "region": [*diff, "--region", str(region)],
        }  # fmt: skip
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # torch's threads shall not spin on a busy machine
        counts = {name: counted(command) for name, command in commands.items()}
        commands |= {"cmp": ["sh", "-c", compared], "equal": equal}
        results = {name: [] for name in commands}
        for _ in range(arguments.runs):
            for name, command in commands.items():
                results[name].append(timed(command, environment))
        size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
        print(f"{size:.2f} GB against {size:.2f} GB, {jobs} threads; {arguments.runs} runs after one warm-up")
        print("all count alike" if len(set(counts.values())) == 1 else f"counts differ: {counts}")
        references = ("load", "lazy", "cmp")
        heads = " ".join(f"{f'ratio to {reference}':>18}" for reference in references)
        print(f"{'':6} {'median s':>9} {heads} {'peak anonymous MB':>18}")
        for name, measured in results.items():
            columns = []
            for reference in references:
                ratios = sorted(a / b for (a, _), (b, _) in zip(measured, results[reference], strict=True))
                columns.append(f"{ratios[0]:.2f} {statistics.median(ratios):.2f} {ratios[-1]:.2f}")
            seconds = statistics.median(seconds for seconds, _ in measured)
            peak = max(peak for _, peak in measured) / 1e6
            cells = " ".join(f"{column:>18}" for column in columns)
            print(f"{name:6} {seconds:9.2f} {cells} {peak:18.0f}")


def counted(command: list[str]) -> tuple[int, int]:
    """Run once and return the changed entries and the sign flips it found."""
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    found = found.get("total", found)
    return found["changed"], found["sign_flips"]


if __name__ == "__main__":
    main()
