"""Fuzzes every door for as long as told, guided by coverage, and says what did not end as it should.

    python tests/fuzz/fuzz.py --seconds 600 [--unguided] [--door header] [--seed 1] [--kept DIR]

Needs the extra `fuzz`: Atheris, which is libFuzzer for Python. Inputs are whole files of each kind, mutated in their
bytes and in the data that they stand for (`mutations.py`); those that reach new branches of surgeon are kept in
DIR/corpus/DOOR, from run to run, and mutated further. An input may take ten seconds, and a gigabyte of memory beyond
what the process had at first; one that fails is kept in DIR as DOOR-crash-..., and its door is left for this run.

`--unguided` needs no Atheris: every input is a mutation of a whole file and nothing counts branches, so that many times
as many go through; the seconds are of processor time, and a door ends at 150,000 inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
LONGEST_SECONDS, MOST_MEMORY = 10, 1 << 30
MOST_UNGUIDED = 150_000
DOORS = (
    "header", "plan", "difference", "index", "config", "region", "overlap", "patch", "bundle", "marker", "report",
    "manifest", "masks", "neurons", "saved", "lines", "parquet", "recipe", "override", "card",
    "model", "rebuild", "dataset",
)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60, help="for all doors together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--door", action="append", choices=DOORS, help="only this one; repeatable")
    parser.add_argument("--kept", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--unguided", action="store_true", help="without coverage, and so many more")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # in this process
    return parser.parse_args()


def main() -> int:
    asked = parse()
    doors = asked.door or list(DOORS)
    if asked.alone:
        (unguided if asked.unguided else fuzz)(doors[0], int(asked.seconds), asked.seed, asked.kept)
        return 0
    started, inputs, failures, slowest, peak = time.monotonic(), {}, {}, 0.0, 0.0
    for number, door in enumerate(doors):
        left = asked.seconds - (0 if asked.unguided else time.monotonic() - started)
        seconds = max(1, round(left / (len(doors) - (0 if asked.unguided else number))))
        command = [sys.executable, __file__, "--alone", "--door", door, "--seconds", str(seconds)]
        command += ["--seed", str(asked.seed), "--kept", str(asked.kept)]
        command += ["--unguided"] if asked.unguided else []
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        found = {key: float(value) for key, value in re.findall(r"stat::(\w+): +([\d.]+)", done.stderr)}
        inputs[door] = int(found.get("number_of_executed_units", 0))
        slowest, peak = max(slowest, found.get("slowest_unit_time_sec", 0)), max(peak, found.get("peak_rss_mb", 0))
        if done.returncode or not found:
            failures[door] = done.stderr[-3000:]
        print(f"{door}: {inputs[door]:,} inputs{', FAILED' if door in failures else ''}", file=sys.stderr, flush=True)
    whole = {"seed": asked.seed, "inputs": sum(inputs.values()), "seconds": round(time.monotonic() - started)}
    print(json.dumps({**whole, "slowest": slowest, "peak_mb": peak, "by_door": inputs, "failures": failures}, indent=1))
    return 1 if failures else 0


def fuzz(name: str, seconds: int, seed: int, kept: Path) -> None:
    """Fuzz one door in this process, which libFuzzer ends."""
    try:
        import atheris
    except ImportError:
        sys.exit("needs Atheris: pip install '.[fuzz]'")
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported
    with atheris.instrument_imports(include=["surgeon"]):
        from doors import holds
        from mutations import mutated
        from workshop import Workshop

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    os.environ["SURGEON_CACHE"] = str(folder / "cache")
    door = Workshop(folder / "work").doors()[name]
    corpus = kept / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, whole in enumerate(door.seeds):
        holds(door, whole)  # imports and caches, which count as no input's memory
        (corpus / f"seed{number}").write_bytes(whole)

    def change(data: bytes, longest: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < 0.3:
            return bytes(atheris.Mutate(data, longest))
        return mutated(replace(door, seeds=(data, *door.seeds)), random)[:longest]

    limits = [f"-timeout={LONGEST_SECONDS}", f"-rss_limit_mb={limit_memory()}", f"-max_total_time={seconds}"]
    where = [str(corpus), f"-artifact_prefix={kept}/{name}-"]
    options = [f"-seed={seed}", "-max_len=65536", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *where, *limits, *options], lambda data: holds(door, data), custom_mutator=change)
    atheris.Fuzz()


def unguided(name: str, seconds: int, seed: int, kept: Path) -> None:
    """Try mutations of whole files at one door until the time is spent; says at the end what libFuzzer would."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported
    from doors import holds
    from mutations import mutated
    from workshop import Workshop

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    os.environ["SURGEON_CACHE"] = str(folder / "cache")
    door = Workshop(folder / "work").doors()[name]
    for whole in door.seeds:
        holds(door, whole)  # imports and caches, which count as no input's memory
    limit_memory()
    signal.signal(signal.SIGPROF, took_too_long)
    kept.mkdir(parents=True, exist_ok=True)
    number, slowest, end = 0, 0.0, time.process_time() + seconds
    while number < MOST_UNGUIDED and time.process_time() < end:
        data, began = mutated(door, Random(f"{name} {seed} {number}")), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LONGEST_SECONDS)
        try:
            holds(door, data)
            if time.process_time() - began > LONGEST_SECONDS:
                raise TookTooLong
        except BaseException:
            (kept / f"{name}-crash-{seed}-{number}").write_bytes(data)
            raise
        number, slowest = number + 1, max(slowest, time.process_time() - began)
    signal.setitimer(signal.ITIMER_PROF, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    shutil.rmtree(folder)
    found = {"number_of_executed_units": number, "slowest_unit_time_sec": slowest, "peak_rss_mb": peak}
    for key, value in found.items():
        print(f"stat::{key}: {value:.3f}", file=sys.stderr)


class TookTooLong(BaseException):
    """An input took longer than it may; nothing that takes any exception for an error of its own takes this one."""


def took_too_long(signum: int, frame: object) -> None:
    raise TookTooLong


def limit_memory() -> int:
    """Allow a gigabyte of addresses beyond those in use now; returns how many megabytes may be resident then."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + MOST_MEMORY // 1024) // 1024


if __name__ == "__main__":
    sys.exit(main())
