"""Two processes over gloo, each setup the real library; the gathered weights are compared with the base on disk."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from freezing import compare, inside_by_diff, make_bundle, saved_state

from surgeon.freeze import Bundle, verify_saved

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("freeze_worker.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 67 rows of embeddings do not divide by two, so that shards are uneven.
    return make_bundle(tmp_path_factory.mktemp("base"), torch.bfloat16, vocab_size=67, intermediate_size=51)


@functools.cache
def worker() -> subprocess.Popen[str]:
    """The process of which all ranks are forks; importing the libraries once is most of what a rank costs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
    started = subprocess.Popen(
        [sys.executable, str(WORKER)], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(started.communicate)  # its input ends, and so does it
    return started


def launch(setup: str, base: Path, output: Path) -> list[dict]:  # type: ignore[type-arg]
    process = worker()
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps([setup, str(base), str(output)]), file=process.stdin, flush=True)
    codes = process.stdout.readline()
    if "fp16 is not supported on your device" in (output / "log").read_text():
        pytest.skip("DeepSpeed trains no float16 on this processor")
    assert codes == "[0, 0]\n", f"{codes}\n{(output / 'log').read_text()[-6000:]}"
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def check_saved(folder: Path, base: Path) -> None:
    inside, outside = compare(base, saved_state(folder))
    assert inside == 0 < outside
    assert verify_saved(folder, base) == Bundle.load(base).region.entries
    assert inside_by_diff(base, folder) == (Bundle.load(base).region.entries, 0)


@pytest.mark.parametrize("setup", ["accelerate-ddp", "trainer-ddp"])
def test_every_replica_holds_all_frozen_entries(base: Path, tmp_path: Path, setup: str) -> None:
    pytest.importorskip("accelerate")
    ranks = launch(setup, base, tmp_path)
    check_saved(tmp_path, base)
    entries = Bundle.load(base).region.entries
    assert [result["entries"] for result in ranks] == [entries, entries]


@pytest.mark.parametrize("setup", ["accelerate-fsdp2", "fsdp2-mixed"])
def test_shards_hold_their_part_of_the_frozen_entries(base: Path, tmp_path: Path, setup: str) -> None:
    pytest.importorskip("accelerate")
    ranks = launch(setup, base, tmp_path)
    check_saved(tmp_path, base)
    entries = Bundle.load(base).region.entries
    assert sum(result["entries"] for result in ranks) == entries
    assert all(0 < result["entries"] < entries and result["checked"] == entries for result in ranks)


def test_freezing_before_fully_shard_holds_too(base: Path, tmp_path: Path) -> None:
    """And what one process alone meddles with is right on disk, and told in both, none of which waits for the other."""
    ranks = launch("fsdp2-early", base, tmp_path)
    check_saved(tmp_path, base)
    entries = Bundle.load(base).region.entries
    assert [result["before"] for result in ranks] == [entries, entries]
    assert sum(result["share"] for result in ranks) == entries
    assert all(f"of {entries} frozen entries have moved" in result["said"] for result in ranks)


def test_tensor_parallel_counts_an_entry_once(base: Path, tmp_path: Path) -> None:
    ranks = launch("tensor-parallel", base, tmp_path)
    check_saved(tmp_path, base)
    region = Bundle.load(base).region
    assert [result["checked"] for result in ranks] == [region.entries] * 2
    norm = region["model.norm.weight"].entries
    assert all(f"{norm} of {region.entries} frozen entries have moved" in result["moved"] for result in ranks)


def test_low_rank_gradients(base: Path, tmp_path: Path) -> None:
    ranks = launch("powersgd", base, tmp_path)
    check_saved(tmp_path, base)
    assert all(result["gradients"] > 0 for result in ranks)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize(
    "setup", ["zero1", "zero2", "zero3", "zero1-fp16", "zero2-fp16", "zero3-fp16", "zero2-early", "zero3-early"]
)
def test_zero_keeps_the_float32_masters(base: Path, tmp_path: Path, setup: str) -> None:
    """DeepSpeed's own checkpoint is written with the entries frozen."""
    ranks = launch(setup, base, tmp_path)
    check_saved(tmp_path, base)
    assert list((tmp_path / "checkpoint").rglob("*.pt"))
    if setup.endswith("fp16"):
        assert 0 < ranks[0]["skipped_steps"] < 24
    else:
        check_saved(tmp_path / "half", base)
    entries = Bundle.load(base).region.entries
    assert sum(result["entries"] for result in ranks) == entries
    assert all(0 < result["entries"] < entries and result["checked"] == entries for result in ranks)
    assert all(result["dirty_moments"] == 0 < result["moments"] for result in ranks)
