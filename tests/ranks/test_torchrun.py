"""The launcher that people use, as examples/surgeon.sbatch starts it: two nodes.

There is no Slurm here: a stand-in for `srun` starts the command twice on this machine, as it would on two nodes. With
SURGEON_RANK_KILLS set, a rank is killed on the first attempt, and the launcher starts all again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ModelMaker
from launching import free_port
from test_ranks import write_recipe

import surgeon

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
SBATCH = HERE.parent.parent / "examples" / "surgeon.sbatch"


def run(command: list[str], environment: dict[str, str], log: Path) -> tuple[int | None, str]:
    """Run a command with all that it starts; returns its exit code, None if it took too long, and what was said."""
    with log.open("w") as file:
        started = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = started.wait(240)
        except subprocess.TimeoutExpired:
            code = None
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    return code, log.read_text()


def test_two_nodes_meet_and_find_the_same(make_model: ModelMaker, texts: dict[str, str], tmp_path: Path) -> None:
    model = make_model("llama", dtype="bfloat16", num_hidden_layers=5)
    recipe = write_recipe(tmp_path, model, texts)
    surgeon.score(recipe, output=tmp_path / "one")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text('#!/bin/bash\n"$@" & first=$!\n"$@" & second=$!\nwait $first && wait $second\n')
    (tools / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "SLURM_NNODES": "2",
        "SLURM_JOB_ID": str(free_port(range(20000, 30000)) - 20000), "SLURM_SUBMIT_DIR": str(tmp_path),
        "SURGEON_CACHE": "",
        "PYTHONPATH": os.pathsep.join([str(HERE / "started"), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    command = ["bash", str(SBATCH), "score", str(recipe), "--output", str(tmp_path / "two")]
    code, said = run(command, environment, tmp_path / "log")
    assert code == 0, said
    began = re.findall(r"began: (\d+) (\w+)", said)
    assert began[:2] == [("0", "None")] * 2
    assert len(began) == (4 if "SURGEON_RANK_KILLS" in os.environ else 2)
    assert len(set(began[2:])) <= 1  # all go on at one layer
    assert {forward for forward, _ in began[2:]} <= {"5"}  # nothing of the sweep forward is done again
    assert list((tmp_path / "cache" / "scores").glob("*.safetensors")) != []
    regions = sorted(path.name for path in (tmp_path / "one" / "regions").iterdir())
    assert len(regions) == 4
    for name in regions:
        one, two = (tmp_path / out / "regions" / name for out in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
