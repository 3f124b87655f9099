"""Who is who among the processes that torchrun has started, what passes between two of them, and who speaks.

Everything that passes between two ranks goes through here, so that a rank that is gone, or that hangs, is an error that
names it. Without torchrun there is one rank, and nothing of `torch.distributed` is imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from surgeon.errors import EnvironmentFailure, InputError, present
from surgeon.memory import require_room_for_torch

if TYPE_CHECKING:
    import torch

TIMEOUT = "SURGEON_RANK_TIMEOUT"  # seconds that one rank waits for another
_PATIENCE = 7200  # a rank may select in a layer of billions of entries, or write a shard, while another waits
_COMING = 60  # seconds in which another process of the same start comes, after the last one that did
_MEETING = timedelta(seconds=300)  # until they have connected to one another, once all have come
_GRACE = 0.5  # seconds, in which a rank that lost patience with a third, and so closed its connections, says so itself
_CLOSED = ("closed by peer", "Connection reset", "Broken pipe")  # what the library says of a process that has ended


class RankLost(EnvironmentFailure):
    """Another rank is gone, or does not answer."""


_met = 0, 1  # rank and world, once all have met
_store: Any = None  # what all ranks can look at from then on
_first = 0  # the rank that speaks before they met
_meetings = 0  # how often this process has come to meet others
_waiter: ThreadPoolExecutor | None = None


def started() -> tuple[int, int]:
    """Return this process's number and how many there are, as a launcher says, whatever it started them for."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def world() -> int:
    """Return how many processes have met (`joined`); 1 before, and in whatever else a launcher has started."""
    return _met[1]


def rank() -> int:
    """Return this process's number among them, from 0."""
    return _met[0]


def own_device(device: str) -> str:
    """Return the device of this rank: of several GPUs of one machine, each process has its own.

    Raises:
        InputError: there are fewer GPUs than processes, or all are told to take the same.
    """
    number, size = started()
    if size == 1 or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise InputError(
            f"--device {device} with {size} processes: write --device cuda, so that each takes its own GPU"
        )
    import torch

    count = torch.cuda.device_count()
    alone = count == 1 and "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ",")  # as Slurm gives one to each process
    local = 0 if alone else int(os.environ.get("LOCAL_RANK", number % max(count, 1)))
    if local >= count:
        raise InputError(f"process {local} of this machine has no GPU: there are {count}; start as many processes")
    return f"cuda:{local}"


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Meet the other ranks; meanwhile the functions below work. With one rank there is nobody to meet.

    In a program that has a process group of its own each process that comes here works alone.

    Raises:
        RankLost: they do not all come within the time-out.
    """
    global _met, _store
    number, size = started()
    if size == 1 or _store is not None:
        yield
        return
    require_room_for_torch()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what is lost is ours to say, and once
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(own_device(device))
    try:
        store = _meeting_place(number, size)
        _wait_for_all(store, number, size)
        on_gpus = device.startswith("cuda")
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        # nccl connects two ranks when the first tensor passes between them, and ends a process whose tensor waits long.
        patience = _patience() if on_gpus else _MEETING
        if on_gpus:
            store.set_timeout(patience)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=patience)
    except RuntimeError as error:
        raise RankLost(f"rank {number} of {size}: the ranks did not all meet ({_first_line(error)})") from None
    _met, _store = (number, size), dist.PrefixStore("surgeon", store)  # type: ignore[attr-defined]
    yield
    _met, _store = (0, 1), None  # after an error they stay, for `speaks`
    with suppress(RuntimeError):
        dist.destroy_process_group()


def _meeting_place(number: int, size: int) -> Any:
    """Return what all ranks of this start look at; rank 0 keeps it, or the launcher does.

    Raises:
        RankLost: whoever keeps it is not there.
    """
    import torch.distributed as dist

    global _first
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise InputError("MASTER_ADDR and MASTER_PORT must say where the ranks meet; torchrun sets both") from None
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    patience = timedelta(seconds=_coming())
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            address, port, size, number == 0 and not by_launcher, timeout=patience, wait_for_workers=False
        )
    except RuntimeError as error:
        _first = min(1, size - 1) if number > 0 else 0
        kept = "the launcher" if by_launcher else "rank 0"
        raise RankLost(
            f"rank {number} of {size}: {kept} is missing, nobody answers at {address}:{port} ({_first_line(error)}); "
            f"see what it says, and start all ranks again ({TIMEOUT} sets how long they wait)"
        ) from None


def _wait_for_all(store: Any, number: int, size: int) -> None:
    """Wait until every rank has said that it is here; as long as others keep coming, patience begins anew.

    Raises:
        RankLost: some do not come; the message names them.
    """
    global _first, _meetings
    _meetings += 1
    key = f"here/{_meetings}"
    store.set(f"{key}/{number}", "1")
    missing, since = list(range(size)), time.monotonic()
    while missing:
        still = [other for other in missing if not store.check([f"{key}/{other}"])]
        since = time.monotonic() if len(still) < len(missing) else since
        missing = still
        if missing and time.monotonic() - since > _coming():
            _first = next(other for other in range(size) if other not in missing)
            names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing[:8]))}"
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise RankLost(
                f"{names}{more} of {size} did not come within {_coming():.0f} s, as rank {_first} found: not started, "
                f"or killed, as the system does where memory is out; start all ranks again ({TIMEOUT} sets the time)"
            )
        if missing:
            time.sleep(0.05)


def _coming() -> float:
    return float(os.environ.get(TIMEOUT, _COMING))


def begin_to_send(tensors: Sequence[torch.Tensor], to: int) -> list[Any]:
    """Begin to hand contiguous tensors over; they must stay as they are until `finish` has been called with the result.

    Raises:
        RankLost: it is gone.
    """
    import torch.distributed as dist

    with _naming(to):
        return [dist.isend(tensor, to) for tensor in tensors]


def finish(begun: Sequence[Any], to: int) -> None:
    """Wait until a rank has what `begin_to_send` began to send.

    Raises:
        RankLost: it is gone, or does not take it within the time-out.
    """

    def wait() -> None:
        for work in begun:
            work.wait(_patience())

    _wait_for(to, wait)


def receive(tensors: Sequence[torch.Tensor], source: int, patience: timedelta | None = None) -> None:
    """Fill contiguous tensors with what a rank sends.

    Raises:
        RankLost: it is gone, or sends nothing within the time-out.
    """
    import torch.distributed as dist

    def wait() -> None:
        for tensor in tensors:
            work = present(dist.irecv(tensor, source))
            work.wait(patience or _patience())

    _wait_for(source, wait)


def speaks() -> bool:
    """True for the first rank that asks, which then says why all of them end; always True where there is one rank."""
    if _store is None:  # before they met each has found the same
        return started()[0] == _first
    try:
        return int(_store.add("said", 1)) == 1
    except RuntimeError:  # whoever kept the store is gone, rank 0 where it is not the launcher
        return rank() <= 1


def _patience() -> timedelta:
    return timedelta(seconds=float(os.environ.get(TIMEOUT, _PATIENCE)))


def _wait_for(other: int, wait: Callable[[], None]) -> None:
    """Wait, noting for all to see for whom, so that whoever loses patience can tell who is at fault.

    It is another thread that waits, since in the library this one would not hear of signals.
    """
    global _waiter
    with _naming(other):
        _store.set(f"waits/{rank()}", str(other))
        _waiter = _waiter or ThreadPoolExecutor(1)
        _waiter.submit(wait).result()
        _store.set(f"waits/{rank()}", "")


@contextmanager
def _naming(other: int) -> Iterator[None]:
    """Turn the library's errors into one that says which rank does not answer, or is gone."""
    try:
        yield
    except RuntimeError as error:
        why = _first_line(error)
        again = "what was finished is kept, run the same command again"
        if "timed out" not in why.lower() and "timeout" not in why.lower():
            time.sleep(_GRACE)
            detail = "" if any(words in why for words in _CLOSED) else f" ({why})"
            raise RankLost(f"rank {other} is gone, as rank {rank()} found{detail}; {again}") from None
        waited = f"{_patience().total_seconds():.0f} s"
        name = _holding_up(other)
        raise RankLost(f"rank {name} does not answer for {waited}; end it, {again} ({TIMEOUT} sets the time)") from None


def _holding_up(other: int) -> int:
    """Follow who waits for whom, from a rank on; the last one waits for nobody."""
    seen = set[int]()
    with suppress(RuntimeError):
        while other not in seen and _store.check([f"waits/{other}"]):
            seen.add(other)
            waits_for = _store.get(f"waits/{other}").decode()
            if not waits_for:
                break
            other = int(waits_for)
    return other


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
