"""Jobs out, results back: the `Team` of processes that have met.

Rank 0 carries out the recipe. Where there is work for all it begins a job, which the others wait for; from then on all
run the same steps. Item `i` is rank `i mod N`'s, so that while rank 0 does one of its own the others do theirs. A rank
holds one result that is on its way, and goes on meanwhile. Of values on their way from one rank to another tensors
travel as they are, regions as files, the rest pickled.
"""

from __future__ import annotations

import atexit
import io
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError
from surgeon.ranks import group
from surgeon.region.region import Region
from surgeon.team import Item, Job, Result

_PIECE = 1 << 24  # bytes of a file that are sent at a time
_FILE = "{}.region.safetensors"
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
        if self._number > 0:
            send(value, 0)
            return list(self._receive(0))
        values = [value, *(self._receive(other) for other in range(1, self._size))]
        self._tell(values)
        return values

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
        for other in range(1, self._size):
            send(value, other)

    def _receive(self, source: int, patience: timedelta | None = None) -> Any:
        return receive(source, self._open, self._device, patience)

    def _provide(self, folder: str) -> None:
        """Send the files of a model to the ranks that do not see them."""
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


class Sending:
    """A value on its way to a rank; it must stay as it is until `finish`."""

    def __init__(self, value: Any, to: int) -> None:
        self._to = to
        data = io.BytesIO()
        packed = _Packed(data)
        packed.dump(value)
        tensors, regions = packed.apart["tensor"], packed.apart["region"]
        layout = [(tensor.dtype, tuple(tensor.shape), tensor.device.type) for tensor in tensors]
        head = pickle.dumps((layout, len(regions), data.getvalue()))
        size = torch.tensor([len(head)])
        parts = [size, torch.frombuffer(bytearray(head), dtype=torch.uint8)]
        parts += [tensor.contiguous() for tensor in tensors if tensor.numel()]
        self._begun, self._parts = group.begin_to_send(parts, to), parts
        with tempfile.TemporaryDirectory() as folder:
            for region in regions:
                path = Path(folder) / _FILE.format("sent")
                region.save(path)
                send_file(path, to)

    def finish(self) -> None:
        """Wait until the rank has it.

        Raises:
            RankLost: it is gone, or does not take it within the time-out.
        """
        group.finish(self._begun, self._to)
        self._begun, self._parts = [], []


def send(value: Any, to: int) -> None:
    """Hand a rank a value, and wait until it has it.

    Raises:
        RankLost: it is gone, or does not take it within the time-out.
    """
    Sending(value, to).finish()


def receive(
    source: int, open_files: ExitStack, device: str | torch.device = "cpu", patience: timedelta | None = None
) -> Any:
    """Return what a rank sends. Regions in it lie in a folder of `open_files`, tensors of a GPU on `device`.

    Raises:
        RankLost: the rank is gone, or sends nothing within the time-out, or within `patience`.
    """
    size = torch.zeros(1, dtype=torch.int64)
    group.receive([size], source, patience)
    head = torch.empty(int(size), dtype=torch.uint8)
    group.receive([head], source)
    layout, regions, data = pickle.loads(head.numpy().data)
    tensors = [
        torch.empty(shape, dtype=dtype, device="cpu" if kind == "cpu" else device) for dtype, shape, kind in layout
    ]
    group.receive([tensor for tensor in tensors if tensor.numel()], source)
    paths = []
    if regions:
        folder = Path(open_files.enter_context(tempfile.TemporaryDirectory()))
        paths = [folder / _FILE.format(number) for number in range(regions)]
        for path in paths:
            receive_file(path, source)
    return _Unpacked(io.BytesIO(data), tensors, [Region.load(path) for path in paths]).load()


def send_file(path: Path, to: int) -> None:
    """Hand a rank the bytes of a file, a piece at a time."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            data = torch.frombuffer(bytearray(piece), dtype=torch.uint8)
            group.finish(group.begin_to_send([torch.tensor([data.numel()]), data], to), to)
    group.finish(group.begin_to_send([torch.tensor([0])], to), to)


def receive_file(path: Path, source: int) -> None:
    """Write what `send_file` sends to a path."""
    size = torch.zeros(1, dtype=torch.int64)
    with path.open("wb") as file:
        while True:
            group.receive([size], source)
            if not int(size):
                break
            piece = torch.empty(int(size), dtype=torch.uint8)
            group.receive([piece], source)
            file.write(piece.numpy().data)


class _Packed(pickle.Pickler):
    """Pickles a value, and leaves tensors and regions out, each once."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.apart: dict[str, list[Any]] = {"tensor": [], "region": []}
        self._numbers: dict[int, tuple[str, int]] = {}

    def persistent_id(self, value: Any) -> tuple[str, int] | None:
        if not isinstance(value, (torch.Tensor, Region)):
            return None
        if id(value) not in self._numbers:
            kind = "tensor" if isinstance(value, torch.Tensor) else "region"
            self._numbers[id(value)] = kind, len(self.apart[kind])
            self.apart[kind].append(value)
        return self._numbers[id(value)]


class _Unpacked(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor], regions: list[Region]) -> None:
        super().__init__(file)
        self._apart: dict[str, list[Any]] = {"tensor": tensors, "region": regions}

    def persistent_load(self, name: Any) -> Any:
        kind, number = name
        return self._apart[kind][number]
