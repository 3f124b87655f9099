"""Scratch of killed processes is reclaimed by the next run; that of living ones, and what is to go on, is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from forking import program_forked

import surgeon
from surgeon.checkpoint.store import named_scratch, own_scratch, reclaim_cache
from surgeon.scores.score_pass import scratch_folder

RecipeMaker = Callable[..., Path]
SCORES = """
import os, signal, sys
from surgeon import scoring
scoring.publish_sealed = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
import surgeon.api
surgeon.api.score(sys.argv[1])
"""
HOLDS = """
import sys
from surgeon.checkpoint.store import named_scratch, own_scratch
with own_scratch() as own, named_scratch("key") as named:
    for folder in (own, named):
        (folder / "hidden.bin").write_bytes(b"states")
    print(1, flush=True)
    sys.stdin.read()
"""


def scratch() -> list[str]:
    root = Path(os.environ["SURGEON_CACHE"]) / "scratch"
    return sorted(path.name.partition("-")[0] for path in root.iterdir()) if root.exists() else []


def test_the_scores_of_a_killed_run_are_gone_after_the_next_one(recipe: RecipeMaker, llama: Path) -> None:
    killed = program_forked(SCORES, recipe())
    assert killed.returncode == -9, killed.stderr
    left = [path for path in Path(os.environ["SURGEON_CACHE"]).rglob("*") if path.suffix == ".safetensors"]
    entries = sum(info.numel for info in surgeon.Checkpoint.open(llama).tensors.values())
    assert sum(path.stat().st_size for path in left) > 3 * entries  # two languages, of most tensors
    score = "score: {kind: grad_param, languages: [de, fr], samples: 4, sequence_length: 32}"
    text = recipe(**{score: "score: {kind: magnitude}", "verify:\n  tokens: 64\n  window: 32\n": ""})
    surgeon.apply(text, overwrite=True)  # another recipe, which does not score on text
    assert scratch() == []
    assert not any(path.exists() for path in left)


def test_scratch_that_a_process_holds_is_left_to_it_and_that_of_a_killed_one_goes() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        reclaim_cache()
        assert scratch() == ["key", "own"]
        with named_scratch("key") as folder, scratch_folder("key", resumes=True) as other:
            assert folder is None  # one sweep does not share another's
            assert (other.resumes, other.folder.name.partition("-")[0]) == (False, "own")
        process.kill()
    assert scratch() == ["key", "own"]
    reclaim_cache()
    assert scratch() == []


def test_scratch_of_an_older_surgeon_goes_and_nothing_beside_it(tmp_path: Path) -> None:
    root = Path(os.environ["SURGEON_CACHE"]) / "scratch"
    (root / "tmpab12cd").mkdir(parents=True)
    (root / "tmpab12cd" / "0123.safetensors").write_bytes(b"scores")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    reclaim_cache()
    assert sorted(path.name for path in root.iterdir()) == ["link"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine"]


@pytest.mark.parametrize(("days", "stays"), [(0, True), (6, True), (8, False)])
def test_a_sweep_that_can_go_on_is_kept_for_a_week(days: int, stays: bool) -> None:
    with suppress(KeyboardInterrupt), scratch_folder("key", resumes=True) as folder:
        progress = folder.folder / "progress.json"
        progress.write_text("{}")
        raise KeyboardInterrupt
    then = progress.stat().st_mtime - days * 24 * 3600
    os.utime(progress, (then, then))
    reclaim_cache()
    assert progress.exists() == stays


def test_scratch_goes_with_its_block() -> None:
    with own_scratch() as one, own_scratch() as other:
        assert one != other
        assert scratch() == ["own", "own"]
    with scratch_folder("key", resumes=True):
        assert scratch() == ["key"]
    assert scratch() == []
