"""Jobs out, results back: the `Team` of processes that have met.

Rank 0 carries out the recipe. Where there is work for all it begins a job, which the others wait for; from then on all
run the same steps. Item `i` is rank `i mod N`'s, so that while rank 0 does one of its own the others do theirs. A rank
holds one result that is on its way, and goes on meanwhile.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError
from surgeon.ranks import group
from surgeon.team import ALONE, Item, Job, Result, Team

_UNTIL_THEN = timedelta(days=30)  # what rank 0 does by itself, such as an upload, takes as long as it takes


@dataclass(frozen=True)
class _End:
    """There is nothing more to do; `result` is what came of it all."""

    result: Any


@dataclass(frozen=True)
class _Files:
    """A model's files, which every rank is to have at hand; `sizes` are those of the weight files."""

    folder: str
    sizes: dict[str, int]


class Ranks:
    """The team of all ranks, on one of them."""

    def __init__(self, number: int, size: int, device: str) -> None:
        self._number, self._size, self._device = number, size, device
        self._open = ExitStack()
        self._local: dict[str, str] = {}  # folders of models, as rank 0 has them and as this rank does

    def begin(self, job: Job) -> None:
        """Hand every other rank a job, and before that the files of its model if it does not see them."""
        folder = getattr(job, "model", None)
        if folder is not None and folder not in self._local:
            self._provide(folder)
        self._tell(job)

    def own(self, items: Sequence[Item]) -> list[Item]:
        """Return every N-th item."""
        return list(items[self._number :: self._size])

    def map(self, do: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Do own items; on rank 0 yield all results in order, elsewhere none."""
        if self._number > 0:
            self._work(do, items)
            return
        for number, item in enumerate(items):
            yield do(item) if number % self._size == 0 else self._receive(number % self._size)

    def _work(self, do: Callable[[Item], Any], items: Sequence[Item]) -> None:
        from surgeon.ranks.messages import Sending

        before: Sending | None = None
        for item in self.own(items):
            result = do(item)
            if before is not None:
                before.finish()
            before = Sending(result, 0)
            del result
        if before is not None:
            before.finish()

    def divided(self, items: Sequence[Item], able: bool = True) -> list[list[Item]]:
        """Deal items out in turns."""
        ready = [number for number, can in enumerate(self.everyones(able)) if can]
        shares: list[list[Item]] = [[] for _ in range(self._size)]
        for turn, number in enumerate(ready):
            shares[number] = list(items[turn :: len(ready)])
        return shares

    def everyones(self, value: Item) -> list[Item]:
        """Return the values of all ranks in their order, on each."""
        from surgeon.ranks.messages import send

        if self._number > 0:
            send(value, 0)
            return list(self._receive(0))
        found = [value, *(self._receive(other) for other in range(1, self._size))]
        self._tell(found)
        return found

    def local(self, folder: str) -> str:
        """Return the folder itself, or the one with what rank 0 has sent."""
        return self._local[folder]

    def help(self, place: Any) -> Any:
        """Help rank 0 until the end; returns what came of it all."""
        while True:
            with ExitStack() as self._open:
                job = self._receive(0, _UNTIL_THEN)
                if isinstance(job, _End):
                    return job.result
                if isinstance(job, _Files):
                    self._take_files(job)
                else:
                    job.help(place)

    def end(self, result: Any) -> None:
        """Let the others go."""
        self._tell(_End(result))

    def _tell(self, value: Any) -> None:
        from surgeon.ranks.messages import send

        for other in range(1, self._size):
            send(value, other)

    def _receive(self, source: int, patience: timedelta | None = None) -> Any:
        from surgeon.ranks.messages import receive

        return receive(source, self._open, self._device, patience)

    def _provide(self, folder: str) -> None:
        """Send the files of a model to the ranks that do not see them."""
        from surgeon.ranks.messages import send, send_file

        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
        self._tell(_Files(folder, {path.name: path.stat().st_size for path in files}))
        for other, sees in enumerate(self.everyones(True)):
            if not sees:
                send([path.name for path in files], other)
                for path in files:
                    send_file(path, other)
        self._local[folder] = folder

    def _take_files(self, wanted: _Files) -> None:
        """Find a model's files, or take them over into a folder that is deleted when the process ends."""
        from surgeon.ranks.messages import receive_file

        sees = _sees(wanted)
        self.everyones(sees)
        self._local[wanted.folder] = wanted.folder
        if not sees:
            own = Path(tempfile.mkdtemp(prefix="surgeon-model-"))
            atexit.register(shutil.rmtree, own, ignore_errors=True)
            for name in self._receive(0):
                receive_file(own / name, 0)
            self._local[wanted.folder] = str(own)


def _sees(wanted: _Files) -> bool:
    try:
        found = Checkpoint.open(wanted.folder)
    except CheckpointError:
        return False
    headers = {header.path.name: header.file_size for header in found.headers}
    return found.folder == Path(wanted.folder) and headers.items() <= wanted.sizes.items()


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """Meet the other ranks, if a launcher has started any; yields the team. `device` is this rank's.

    In a program that has a process group of its own each process that comes here works alone.

    Raises:
        RankLost: they do not all come within the time-out.
    """
    with group.joined(device):
        yield Ranks(group.rank(), group.world(), group.own_device(device)) if group.world() > 1 else ALONE
