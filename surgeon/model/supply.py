"""The weights of a model for ranks that do not see its files.

Such a rank has a stand-in: files with the same headers whose data are holes, in a temporary folder. All ranks read the
model's tensors in the same order; when one comes for the first time rank 0 sends its bytes, each rank hands them on,
and those without the files put them where they belong. So each byte is sent once, layer by layer as it is needed, and
everything else works as with the files.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgeon import ranks
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import parts_of
from surgeon.checkpoint.storage import TensorInfo, on_disk, read_bytes

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 26


@dataclass(frozen=True)
class StandIn:
    """Small files as they are, and the weight files' headers with their sizes, by name."""

    files: dict[str, bytes]
    headers: dict[str, tuple[bytes, int]]


def stand_in_for(checkpoint: Checkpoint) -> StandIn:
    """Read what a stand-in is made of."""
    weights = {header.path.name: header for header in checkpoint.headers}
    others = [path for path in checkpoint.folder.iterdir() if path.is_file() and path.suffix != ".safetensors"]
    headers = {}
    for name, header in weights.items():
        with on_disk(header.path).open("rb") as file:
            headers[name] = file.read(header.data_start), header.file_size
    return StandIn({path.name: path.read_bytes() for path in others}, headers)


def make_stand_in(made_of: StandIn) -> Path:
    """Make a folder that looks like the model's, without its weights; it is deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="surgeon-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, data in made_of.files.items():
        (folder / name).write_bytes(data)
    for name, (header, size) in made_of.headers.items():
        (folder / name).write_bytes(header)
        os.truncate(folder / name, size)
    return folder


class Supply:
    """Reads tensors on all ranks at the same time; `blind` on one whose files are a stand-in."""

    def __init__(self, checkpoint: Checkpoint, blind: bool) -> None:
        self._checkpoint, self._blind = checkpoint, blind
        self._there: set[str] = set()

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor as it is on disk."""
        if name not in self._there:
            self._fetch(name)
            self._there.add(name)
        return self._checkpoint.tensor(name)

    def _fetch(self, name: str) -> None:
        for info in parts_of(self._checkpoint.info(name)):
            self._fetch_stored(info)

    def _fetch_stored(self, info: TensorInfo) -> None:
        import torch

        for start in range(0, info.nbytes, _PIECE):
            count = min(_PIECE, info.nbytes - start)
            mine = read_bytes(info, start, count) if ranks.rank() == 0 else np.empty(count, np.uint8)
            ranks.spread_from_first(torch.from_numpy(mine))
            if self._blind:
                with on_disk(info.path).open("r+b") as file:
                    file.seek(info.offset + start)
                    file.write(mine.data)
