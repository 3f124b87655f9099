"""A rank that is killed, or hangs: one message, and the same command goes on to the same bytes."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import jobs
import pytest
from conftest import ModelMaker, with_pictures
from launching import Rank, Ranks, free_port, run_ranks
from test_ranks import found, write_recipe

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("SURGEON_RANK_KILLS", 1))  # more of them for a search by hand


@pytest.fixture(scope="module")
def recipe(make_model: ModelMaker, texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return write_recipe(folder, make_model("llama", dtype="bfloat16", shard="40KB", num_hidden_layers=5), texts)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What one rank finds that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run_ranks(1, jobs.apply, str(recipe), str(folder / "out"), folder=folder, environment=cache(folder))
    return found(folder / "out")


def cache(folder: Path) -> dict[str, str]:
    return {"SURGEON_CACHE": str(with_pictures(folder / "cache"))}


def messages(ended: list[Rank]) -> list[str]:
    return [line for rank in ended for line in rank.said.splitlines() if re.match("error|interrupted", line)]


@pytest.mark.parametrize(("share", "victim", "moment"), [(0.0, 1, 10), (1.0, 0, 9)])
def test_a_killed_rank_ends_all_with_a_word_and_they_go_on_at_the_layer(
    share: float, victim: int, moment: int, recipe: Path, whole: dict[str, object], tmp_path: Path
) -> None:
    """With five layers, the sixth note is that the sweep turns; at the ninth two layers more are behind all ranks."""
    arguments = str(recipe), str(tmp_path / "out"), 0, share
    ended = Ranks(
        2, jobs.apply_and_die, *arguments, victim, moment, folder=tmp_path, environment=cache(tmp_path)
    ).wait()
    assert ended[victim].code == -signal.SIGKILL
    assert ended[1 - victim].code in (3, 143)
    assert len(messages(ended)) == 1, messages(ended)
    again = run_ranks(2, jobs.apply_and_tell, *arguments, folder=tmp_path, environment=cache(tmp_path))
    began = [re.findall(r"began: (\d+) (\d+)", rank.said) for rank in again]
    assert began[0] == began[1]
    assert began[0][0][0] == "5"
    assert 1 <= int(began[0][0][1]) < 5
    assert found(tmp_path / "out") == whole
    assert list((tmp_path / "cache" / "scratch").iterdir()) == []


def test_ranks_killed_at_random_moments_end_with_the_same_bytes(
    recipe: Path, whole: dict[str, object], tmp_path: Path
) -> None:
    chance = random.Random(KILLS)
    killed = 0
    for attempt in range(KILLS):
        count = 2 + attempt % 2
        running = Ranks(
            count, jobs.apply, str(recipe), str(tmp_path / "out"), 0.0, 0, folder=tmp_path, environment=cache(tmp_path)
        )
        time.sleep(chance.uniform(0.3, 2.5))
        victim = running.processes[chance.randrange(count)]
        if victim.exitcode is None:
            victim.kill()
            killed += 1
        ended = running.wait()
        assert len(messages(ended)) <= 1, messages(ended)
    run_ranks(2, jobs.apply, str(recipe), str(tmp_path / "out"), 0.0, 0, folder=tmp_path, environment=cache(tmp_path))
    assert killed >= KILLS / 2
    assert found(tmp_path / "out") == whole


def test_a_rank_that_hangs_is_named(recipe: Path, tmp_path: Path) -> None:
    environment = {**cache(tmp_path), "SURGEON_RANK_TIMEOUT": "4"}
    running = Ranks(
        3, jobs.apply_and_stop, str(recipe), str(tmp_path / "out"), 1, folder=tmp_path, environment=environment
    )
    ended = running.wait()
    assert 3 in [rank.code for rank in ended]
    assert len(messages(ended)) == 1, messages(ended)
    assert messages(ended)[0].startswith("error: rank 1 does not answer for 4 s")


def test_a_mistake_is_told_once(recipe: Path, tmp_path: Path) -> None:
    ended = Ranks(2, jobs.apply, str(recipe) + "x", str(tmp_path / "out"), folder=tmp_path).wait()
    assert ended[0].code == 2
    assert len(messages(ended)) == 1, messages(ended)
    assert "no such recipe file" in messages(ended)[0]


@pytest.mark.parametrize(("victims", "by_launcher"), [((1,), True), ((0, 2), True), ((2,), False), ((0,), False)])
def test_ranks_that_are_killed_before_they_met_are_named_soon(
    victims: tuple[int, ...], by_launcher: bool, tmp_path: Path
) -> None:
    """With nobody to end the others, as under srun, and whether or not the launcher keeps what ranks look at."""
    environment = {"SURGEON_RANK_TIMEOUT": "3"}
    if not by_launcher:
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(free_port())}
    running = Ranks(3, jobs.meet_without, *victims, folder=tmp_path, environment=environment)
    for process in running.processes:
        process.join(60)
    ended = running.wait()
    left = [number for number in range(3) if number not in victims]
    assert [ended[number].code for number in left] == [3] * len(left), ended
    said = messages(ended)
    assert len(said) == 1, said
    if by_launcher or 0 not in victims:
        names = ", ".join(map(str, victims))
        assert said[0].startswith(f"error: rank{'s' if len(victims) > 1 else ''} {names} of 3 did not come within 3 s")
    else:
        assert "rank 0 is missing" in said[0]
