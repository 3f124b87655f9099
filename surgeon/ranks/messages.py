"""Values on their way from one rank to another: tensors travel as they are, regions as files, the rest pickled."""

from __future__ import annotations

import io
import pickle
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from surgeon.ranks import group
from surgeon.region.region import Region

_PIECE = 1 << 24  # bytes of a file that are sent at a time
_FILE = "{}.region.safetensors"


class Sending:
    """A value on its way to a rank; it must stay as it is until `finish`."""

    def __init__(self, value: Any, to: int) -> None:
        self._to = to
        data = io.BytesIO()
        packed = _Packed(data)
        packed.dump(value)
        layout = [(tensor.dtype, tuple(tensor.shape), tensor.device.type) for tensor in packed.tensors]
        head = pickle.dumps((layout, len(packed.regions), data.getvalue()))
        size = torch.tensor([len(head)])
        parts = [size, torch.frombuffer(bytearray(head), dtype=torch.uint8)]
        parts += [tensor.contiguous() for tensor in packed.tensors if tensor.numel()]
        self._begun, self._parts = group.begin_to_send(parts, to), parts
        with TemporaryDirectory() as folder:
            for region in packed.regions:
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
        folder = Path(open_files.enter_context(TemporaryDirectory()))
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
        self.tensors: list[torch.Tensor] = []
        self.regions: list[Region] = []
        self._numbers: dict[int, tuple[str, int]] = {}

    def persistent_id(self, value: Any) -> tuple[str, int] | None:
        if isinstance(value, torch.Tensor):
            if id(value) not in self._numbers:
                self._numbers[id(value)] = "tensor", len(self.tensors)
                self.tensors.append(value)
            return self._numbers[id(value)]
        if isinstance(value, Region):
            if id(value) not in self._numbers:
                self._numbers[id(value)] = "region", len(self.regions)
                self.regions.append(value)
            return self._numbers[id(value)]
        return None


class _Unpacked(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor], regions: list[Region]) -> None:
        super().__init__(file)
        self._found: dict[str, list[Any]] = {"tensor": tensors, "region": regions}

    def persistent_load(self, name: Any) -> Any:
        kind, number = name
        return self._found[kind][number]
