"""A disk that fills at ten points of a run: one message, nothing half done, and with room the same command finishes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ModelMaker
from forking import run_forked
from test_crashes import RECIPE

from surgeon.checkpoint.storage import allocate_file
from surgeon.model import hidden_states
from surgeon.model.hidden_states import States

POINTS = 10


@contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """Mount a file system of so many bytes, which lies in memory; where nobody lets us the test is skipped."""
    place.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no `mount` here")
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def whole(out: Path) -> dict[str, object]:
    """What a run leaves but for times, where it lies, what it reused, and the page, which shows all that."""
    found: dict[str, object] = {}
    for path in out.rglob("*"):
        if path.is_file() and path.name != "report.html":
            found[path.relative_to(out).as_posix()] = path.read_bytes()
    for name, timed in (("report.json", "timings"), ("manifest.json", "report")):
        data = json.loads((out / name).read_bytes())
        data.pop(timed)
        for variant in data.get("variants", {}).values():
            del variant["reused"], variant["path"]
        found[name] = data
    return found


def half_done(out: Path, wanted: dict[str, object]) -> list[str]:
    """Final names that hold something other than a finished run would; what holds measurements differs in times."""
    found = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    named = {name.as_posix(): path for name, path in found.items() if not any(p.startswith(".") for p in name.parts)}
    written = {name: path for name, path in named.items() if name not in ("report.json", "manifest.json")}
    return [name for name, path in written.items() if name in wanted and path.read_bytes() != wanted[name]]


def test_what_is_allocated_for_scores_and_states_says_where_the_disk_is_full(tmp_path: Path) -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left") as ended:
        allocate_file(device, [("a", "F32", (4,))], {})
    assert ended.value.filename == str(device)
    (tmp_path / "hidden-00000.bin").symlink_to(device)
    states = States([(2, 2)], torch.float32, tmp_path)
    states.put(0, 0, torch.zeros(2, 2))  # which is done behind what is computed
    with pytest.raises(OSError, match="hidden-00000") as ended:
        states.flush(0)


def test_states_that_could_not_be_kept_say_why_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hidden_states, "reserve", full)
    states = States([(2, 2)], torch.float32, tmp_path)
    states.put(0, 0, torch.zeros(2, 2))
    with pytest.raises(OSError, match=r"No space left.*hidden-00000"):
        states.get(0, 0)


@pytest.mark.slow
def test_a_disk_that_fills_is_one_message_and_with_room_the_same_command_finishes(
    make_model: ModelMaker, texts: dict[str, str], tmp_path: Path
) -> None:
    model = make_model("llama", dtype="bfloat16", shard="20KB")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, fraction=0.01, **texts))
    pictures = Path(os.environ["SURGEON_CACHE"], "page").resolve()  # as in every test

    def case(place: Path) -> dict[str, object]:
        (place / "cache").mkdir(exist_ok=True)
        if not (place / "cache" / "page").exists():
            (place / "cache" / "page").symlink_to(pictures)
        return {
            "arguments": ["apply", str(recipe), "--output", str(place / "out"), "--jobs", "1"],
            "environment": {"SURGEON_CACHE": str(place / "cache")},
        }

    with ExitStack() as disks:
        disks.enter_context(disk(tmp_path / "ample", 1 << 28))
        (ample,) = run_forked([case(tmp_path / "ample")])
        assert ample["code"] == 0, ample["said"]
        wanted = whole(tmp_path / "ample" / "out")
        found = os.statvfs(tmp_path / "ample")
        needed = (found.f_blocks - found.f_bfree) * found.f_frsize
        # The page is most of it, and comes last: so the points lie closer where less is written.
        sizes = [int(needed * 0.9 ** (number**1.3)) // 4096 * 4096 for number in range(1, POINTS + 1)]
        places = [tmp_path / f"disk-{size}" for size in sizes]
        for place, size in zip(places, sizes, strict=True):
            disks.enter_context(disk(place, size))
        first = run_forked([case(place) for place in places])
        for place, result in zip(places, first, strict=True):
            said = [line for line in result["said"].splitlines() if line.startswith("error: ")]
            assert (result["code"], len(said)) == (3, 1), result["said"]
            assert "Traceback" not in result["said"]
            assert str(place) in said[0]
            assert half_done(place / "out", wanted) == []
            subprocess.run(["mount", "-o", f"remount,size={1 << 28}", place], check=True)
        again = places[::3]  # the crashes beside do this at every call
        for place, result in zip(again, run_forked([case(place) for place in again]), strict=True):
            assert result["code"] == 0, result["said"]
            assert whole(place / "out") == wanted
            left = [*place.rglob(".*.part*"), *place.rglob(".*.staging"), *place.glob("cache/scratch/*")]
            assert left == []
