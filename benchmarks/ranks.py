"""The same recipe on one process and on several of one thread each, under torchrun: time, and bytes that travel.

    python benchmarks/ranks.py WORK [--recipe zero_core] [--ranks 1 2] [--network 1.25e9] [--set PATH=VALUE ...]

Runs `apply` for each number of ranks with a cache of its own, checks that regions, variant and perplexities are the
same bytes, and prints the seconds of scoring and verification, their ratio to one process, the processor time of the
busiest rank in them (which says more where other work keeps the processors busy), and the bytes that each rank sent.
From the seconds of one process and those bytes it predicts larger numbers of ranks over a network of so many bytes a
second. Exit code 1 if the bytes differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from surgeon.api import plan_recipe
from surgeon.plan.elsewhere import rank_needs
from surgeon.scores.base import PIECES

STEPS = ("score", "verify")


def worker(recipe: str, output: str, overrides: list[str]) -> None:
    """Run `apply` as one rank, and write down what it sent."""
    import surgeon
    from surgeon import scoring
    from surgeon.measure import verification
    from surgeon.ranks import group, team
    from surgeon.scores import score_pass

    used = [0.0]

    def timed(function: Any) -> Any:
        def measured(*args: Any) -> Any:
            started = time.process_time()
            result = function(*args)
            used[0] += time.process_time() - started
            return result

        return measured

    scoring._on_text = timed(scoring._on_text)
    score_pass.SharedScorePass.help = timed(score_pass.SharedScorePass.help)  # type: ignore[method-assign]
    verification.measure = timed(verification.measure)
    sent = {"sums": 0, "values": 0}
    sending = team.Sending.__init__

    def counted(self: Any, value: Any, to: int) -> None:
        sending(self, value, to)
        for part in self._parts:
            sent["sums" if str(part.dtype) == "torch.float32" else "values"] += part.numel() * part.element_size()

    team.Sending.__init__ = counted  # type: ignore[method-assign]
    surgeon.apply(recipe, output=output, overrides=overrides)
    Path(f"{output}.sent{group.started()[0]}.json").write_text(json.dumps({**sent, "processor": used[0]}))


def run(count: int, options: argparse.Namespace) -> dict[str, Any]:
    output, cache = options.work / f"out{count}", options.work / f"cache{count}"
    for folder in (output, cache):
        shutil.rmtree(folder, ignore_errors=True)
    launcher = [sys.executable]
    if count > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "SURGEON_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [*launcher, __file__, "--worker", options.recipe, str(output), *(options.set or [])]
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    report = json.loads((output / "report.json").read_text())
    sent = [json.loads(Path(f"{output}.sent{rank}.json").read_text()) for rank in range(count)]
    return {"wall": time.perf_counter() - started, "report": report, "sent": sent, "output": output}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    files = [path.relative_to(one["output"]) for path in one["output"].rglob("*.safetensors")]
    alike = all((one["output"] / name).read_bytes() == (other["output"] / name).read_bytes() for name in files)
    return alike and one["report"]["perplexity"] == other["report"]["perplexity"]


def predict(options: argparse.Namespace, seconds: float) -> None:
    """Print what larger numbers of ranks would take."""
    plan = plan_recipe(options.recipe, overrides=options.set or ())
    pieces = PIECES * max(len(score.languages) for score in plan.sampled_scores())
    print(f"predicted from {seconds:.1f} s on one rank, with {options.network:.3g} bytes/s into the first of them:")
    for count in (1, 2, 4, 8, 16, 32, 64):
        arithmetic = seconds * -(-pieces // count) / pieces  # the rank with most pieces
        travel = rank_needs(plan, count).sent * (count - 1) / options.network
        taken = arithmetic + travel  # a layer's sums come when it has been done
        print(f"  {count:3d} ranks: {taken:8.1f} s, {taken / seconds:.3f} of one; travel alone {travel:.1f} s")


def main() -> None:
    if "--worker" in sys.argv:
        _, _, recipe, output, *overrides = sys.argv
        worker(recipe, output, overrides)
        return
    parser = argparse.ArgumentParser(description="Time one recipe on one process and on several.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", default="zero_core")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--network", type=float, default=1.25e9, help="bytes a second between two ranks")
    parser.add_argument("--set", action="append", help="override one field of the recipe; repeatable")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    found = {count: run(count, options) for count in options.ranks}
    first = found[options.ranks[0]]
    for count, result in found.items():
        timings = result["report"]["timings"]
        steps = ", ".join(f"{step} {timings[step]:.1f} s" for step in STEPS)
        ratio = sum(timings[step] for step in STEPS) / sum(first["report"]["timings"][step] for step in STEPS)
        print(f"{count} ranks: {steps}; {ratio:.2f} of {options.ranks[0]}; apply in all {result['wall']:.1f} s")
        busiest = [max(rank["processor"] for rank in of_run["sent"]) for of_run in (result, first)]
        share = busiest[0] / busiest[1]
        print(f"  busiest rank: {busiest[0]:.1f} s of processor time, {share:.2f} of {options.ranks[0]}")
        print(f"  bytes sent and seconds, by rank: {result['sent']}")
    plan = plan_recipe(options.recipe, overrides=options.set or ())
    for count in options.ranks:
        print(f"planned for {count}: at most {rank_needs(plan, count).sent:,} bytes a rank")
    predict(options, sum(first["report"]["timings"][step] for step in STEPS))
    alike = all(same(first, result) for result in found.values())
    print("the same bytes" if alike else "NOT the same bytes")
    raise SystemExit(int(not alike))


if __name__ == "__main__":
    main()
