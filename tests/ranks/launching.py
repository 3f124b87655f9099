"""Several ranks of one machine as forks of one process that has imported everything, which takes seconds otherwise."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch.distributed
from conftest import with_pictures

_FORKS = multiprocessing.get_context("forkserver")
_HERE = Path(__file__).parent


def _start_forks() -> None:
    """Start the process that forks, once; it finds modules by PYTHONPATH alone."""
    _FORKS.set_forkserver_preload(["launching_preload"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE), str(_HERE.parent), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@dataclass
class Rank:
    """How one rank ended: `code` is that of its process, negative if it was killed; `said` is what went to stderr."""

    code: int | None
    said: str


def free_port(among: Iterable[int] = (0,)) -> int:
    """Return a port that nobody uses; without a choice the system's."""
    for port in among:
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return int(found.getsockname()[1])
    raise AssertionError("no free port")


class Ranks:
    """`count` processes that each run `work(*arguments)` as torchrun's would, after `prepare(rank)`."""

    def __init__(
        self,
        count: int,
        work: Callable[..., Any],
        *arguments: Any,
        folder: Path,
        environment: Mapping[str, str] | Callable[[int], Mapping[str, str]] = {},  # noqa: B006
    ) -> None:
        _start_forks()
        port = free_port()
        # As torchrun does, keep what ranks can look at in a process that outlives them.
        self._store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SURGEON_CACHE": str(with_pictures(folder / "cache")),
            "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        }  # fmt: skip
        self._logs = [folder / f"rank{rank}.log" for rank in range(count)]
        self.processes = []
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            added = environment(rank) if callable(environment) else environment
            everything = {**shared, **own, **added}
            process = _FORKS.Process(target=_run, args=(everything, str(self._logs[rank]), work, arguments))
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 120) -> list[Rank]:
        """Wait until all have ended, or until one failed, as torchrun does: then the others are asked to end."""
        deadline = time.monotonic() + seconds
        while any(process.exitcode is None for process in self.processes):
            failed = any(process.exitcode not in (None, 0) for process in self.processes)
            if failed or time.monotonic() > deadline:
                self.end()
                break
            time.sleep(0.02)
        said = [log.read_text() if log.exists() else "" for log in self._logs]
        return [Rank(process.exitcode, text) for process, text in zip(self.processes, said, strict=True)]

    def end(self) -> None:
        for process in self.processes:
            if process.exitcode is None:
                process.terminate()
        for process in self.processes:
            process.join(2)
            if process.exitcode is None:
                process.kill()
                process.join()


def run_ranks(count: int, work: Callable[..., Any], *arguments: Any, folder: Path, **options: Any) -> list[Rank]:
    """Run ranks to their end; all must end well."""
    ended = Ranks(count, work, *arguments, folder=folder, **options).wait()
    assert [rank.code for rank in ended] == [0] * count, "\n".join(rank.said for rank in ended)
    return ended


def _run(environment: Mapping[str, str], log: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    from surgeon.ending import run_to_its_end

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(log, "w", buffering=1) as file:
        sys.stderr = file
        try:
            run_to_its_end(lambda: work(*arguments))
        except SystemExit as end:
            file.flush()
            os._exit(int(end.code or 0))
        except BaseException:
            traceback.print_exc(file=file)
            file.flush()
            os._exit(99)
        file.flush()
        os._exit(0)
