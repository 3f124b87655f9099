"""Several processes at one recipe, as torchrun starts them: who is who, what passes between them, who speaks.

Rank 0 carries out the recipe; the others take their part where there is one. Everything that passes between two ranks
goes through here, so that a rank that is gone, or that hangs, is an error that names it. Without torchrun there is one
rank, and nothing of `torch.distributed` is imported.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import EnvironmentFailure, InputError, present
from surgeon.memory import require_room_for_torch

if TYPE_CHECKING:
    import torch

VALUES, CHAIN, SCORES, WEIGHTS = 0, 1, 2, 3  # tags: what goes between two ranks at the same time is kept apart by them
ENGINE = "engine"  # the name of the thread that runs the model while the main one selects
TIMEOUT = "SURGEON_RANK_TIMEOUT"  # seconds that one rank waits for another
_PATIENCE = 7200  # a rank may select in a layer of billions of entries, or write a shard, while another waits
_COMING = 60  # seconds in which another process of the same start comes, after the last one that did
_MEETING = timedelta(seconds=300)  # until they have connected to one another, once all have come
_PIECE = 1 << 24
_CLOSED = ("closed by peer", "Connection reset", "Broken pipe")  # what the library says of a process that has ended
_SERVED_BY = {VALUES: "main", CHAIN: ENGINE}  # the thread that a rank is waited for; of scores see `_thread_of`


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


def own_run(count: int) -> slice:
    """Return the run of so many things that are this rank's to do; those of all ranks follow one another."""
    return slice(rank() * count // world(), (rank() + 1) * count // world())


def own_device(device: str) -> str:
    """Return the device of this rank: of several GPUs of one machine, each process has its own."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and started()[1] > 1 else device


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
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_MEETING)
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
    place = f"here/{_meetings}"
    store.set(f"{place}/{number}", "1")
    missing, since = list(range(size)), time.monotonic()
    while missing:
        still = [other for other in missing if not store.check([f"{place}/{other}"])]
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


def share(value: Any = None, patience: timedelta | None = None) -> Any:
    """Return rank 0's `value` on every rank; the others wait for it, if asked to with more `patience`."""
    if world() == 1:
        return value
    if rank() > 0:
        return receive_value(0, patience=patience)
    for other in range(1, world()):
        send_value(value, other)
    return value


def share_file(path: Path) -> None:
    """Write rank 0's file at a path of each rank's own, a piece at a time."""
    if rank() == 0:
        with path.open("rb") as file:
            while share(file.read(_PIECE)):
                pass
        return
    with path.open("wb") as file:
        while piece := share():
            file.write(piece)


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in their order, on rank 0; an empty list on the others."""
    if world() == 1:
        return [value]
    if rank() > 0:
        send_value(value, 0)
        return []
    return [value, *(receive_value(other) for other in range(1, world()))]


def send_value(value: Any, to: int, tag: int = VALUES) -> None:
    """Hand a rank anything that can be pickled."""
    import torch

    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    send([torch.tensor([data.numel()])], to, tag)
    send([data], to, tag)


def receive_value(source: int, tag: int = VALUES, patience: timedelta | None = None) -> Any:
    """Return what a rank hands over by `send_value`."""
    import torch

    size = torch.zeros(1, dtype=torch.int64)
    receive([size], source, tag, patience)
    data = torch.empty(int(size), dtype=torch.uint8)
    receive([data], source, tag)
    return pickle.loads(data.numpy().data)


def send(tensors: Sequence[torch.Tensor], to: int, tag: int) -> None:
    """Hand tensors to a rank, and wait until it has them.

    Raises:
        RankLost: it is gone, or does not take them within the time-out.
    """
    finish(begin_to_send(tensors, to, tag), to, tag)


def begin_to_send(tensors: Sequence[torch.Tensor], to: int, tag: int) -> list[tuple[Any, torch.Tensor]]:
    """Begin to hand tensors over; they must stay as they are until `finish` has been called with the result."""
    import torch.distributed as dist

    with _naming(to):
        whole = [tensor.contiguous() for tensor in tensors]
        return [(dist.isend(tensor, to, tag=tag), tensor) for tensor in whole]


def finish(begun: Sequence[tuple[Any, torch.Tensor]], to: int, tag: int) -> None:
    """Wait until a rank has what `begin_to_send` began to send.

    Raises:
        RankLost: see `send`.
    """

    def wait() -> None:
        for work, _ in begun:
            work.wait(_patience())

    _wait_for(to, tag, wait)


def receive(tensors: Sequence[torch.Tensor], source: int, tag: int, patience: timedelta | None = None) -> None:
    """Fill contiguous tensors with what a rank sends.

    Raises:
        RankLost: it is gone, or sends nothing within the time-out.
    """
    import torch.distributed as dist

    def wait() -> None:
        for tensor in tensors:
            work = present(dist.irecv(tensor, source, tag=tag))
            work.wait(patience or _patience())

    _wait_for(source, tag, wait)


def spread_from_first(tensor: torch.Tensor) -> None:
    """Fill a tensor with rank 0's, on every rank, each handing it on; all ranks must come here in the same order."""
    number, size = _met
    if number > 0:
        receive([tensor], number & (number - 1), WEIGHTS)
    reach = number & -number or 1 << size.bit_length()  # the lowest bit of a rank's number says how far it hands on
    while (reach := reach >> 1) > 0:
        if number + reach < size:
            send([tensor], number + reach, WEIGHTS)


def announce(what: str) -> None:
    """Let all ranks know that something has happened."""
    _store.set(f"done/{what}", "1")


def announced(what: str) -> bool:
    """True if some rank has announced it."""
    return bool(_store.check([f"done/{what}"]))


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


def _wait_for(other: int, tag: int, wait: Callable[[], None]) -> None:
    """Wait, noting for all to see whom this thread waits for, so that whoever loses patience can tell who is at fault.

    The main thread leaves the waiting to another one, since in the library it would not hear of signals.
    """
    global _waiter
    mine = _place(rank(), _thread())
    with _naming(other):
        _store.set(mine, f"{other}/{_thread_of(tag)}")
        if _thread() == ENGINE:
            wait()
        else:
            _waiter = _waiter or ThreadPoolExecutor(1)
            _waiter.submit(wait).result()
        _store.set(mine, "")


@contextmanager
def _naming(other: int) -> Iterator[None]:
    """Turn the library's errors into one that says which rank does not answer, or is gone."""
    try:
        yield
    except RuntimeError as error:
        why = _first_line(error)
        again = "what was finished is kept, run the same command again"
        if "timed out" not in why.lower() and "timeout" not in why.lower():
            detail = "" if any(words in why for words in _CLOSED) else f" ({why})"
            raise RankLost(f"rank {other} is gone, as rank {rank()} found{detail}; {again}") from None
        waited = f"{_patience().total_seconds():.0f} s"
        name = _holding_up(other)
        raise RankLost(f"rank {name} does not answer for {waited}; end it, {again} ({TIMEOUT} sets the time)") from None


def _holding_up(other: int) -> int:
    """Follow who waits for whom, from this rank on; the last one waits for nobody."""
    place, seen = _place(rank(), _thread()), set[str]()
    with suppress(RuntimeError):
        while place not in seen and _store.check([place]):
            seen.add(place)
            waits_for = _store.get(place).decode()
            if not waits_for:
                break
            other, place = int(waits_for.partition("/")[0]), f"waits/{waits_for}"
    return other


def _place(number: int, thread: str) -> str:
    return f"waits/{number}/{thread}"


def _thread() -> str:
    return ENGINE if threading.current_thread().name == ENGINE else "main"


def _thread_of(tag: int) -> str:
    """Return the thread of the other rank that serves a tag: scores go from one's engine to another's main thread."""
    if tag == WEIGHTS:
        return _thread()
    return _SERVED_BY.get(tag, "main" if _thread() == ENGINE else ENGINE)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
