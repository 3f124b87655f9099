"""Hidden states (or their gradients) of many batches: in memory, or, past a budget, in mapped scratch files.

A batch enters the layers by its embedding's output, and with the arguments that its layers are called with.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from surgeon.errors import present
from surgeon.inside import naming, reserve
from surgeon.model.device import moment, on_its_way, taken_over
from surgeon.model.layer_stack import Arguments, Stack, alike

Moved = TypeVar("Moved")
Shape = tuple[int, ...]


class States:
    """A tensor for each row and batch. All rows hold the same `shapes`, one per batch, in one dtype.

    With a `folder` each row is a file in it, which a later process finds again; `drop` deletes it. Without one a row is
    a piece of memory of its own on the device `home`, so that nothing that is kept for long stands among what layers
    make and drop.

    Where rows are neither in memory nor on the `device` that computes, a thread moves them: the next batch comes while
    one is computed with, and what was put there goes meanwhile. What is put must then stay as it is.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        dtype: torch.dtype,
        folder: Path | None,
        label: str = "hidden",
        home: str = "cpu",
        device: str = "cpu",
    ) -> None:
        self._shapes, self._dtype, self._folder, self._label = list(shapes), dtype, folder, label
        # Which of several GPUs `cuda` is, each thread says for itself: here it is asked in this one.
        self._home, self._device = torch.device(home), torch.empty(0, device=device).device
        self._away = folder is not None or self._home.type != self._device.type
        self._starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
        self._rows: dict[int, torch.Tensor] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._thread: ThreadPoolExecutor | None = None  # does one thing after the other
        self._behind: Future[None] | None = None  # what was put last
        self._ahead: dict[tuple[int, int], Future[torch.Tensor]] = {}  # one at most

    @property
    def on_disk(self) -> bool:
        """True if rows are files."""
        return self._folder is not None

    def put(self, row: int, batch: int, value: torch.Tensor) -> None:
        """Keep a copy of a tensor."""
        self._ahead.pop((row, batch), None)
        if not self._away:
            self._store(row, batch, value.detach())
            return
        self._settle()  # so that one at most is on its way, and takes memory
        self._behind = self._later(self._store, row, batch, value.detach())

    def get(self, row: int, batch: int) -> torch.Tensor:
        """Return a copy of what was put there, on the device that computes; the layers may change it in place."""
        if not self._away:
            return self._bring(row, batch)
        coming = self._ahead.pop((row, batch), None) or self._later(self._bring, row, batch)
        following = next((i for i in range(batch + 1, len(self._shapes)) if math.prod(self._shapes[i])), None)
        self._ahead = {} if following is None else {(row, following): self._later(self._bring, row, following)}
        return self._arrived(coming)

    def part(self, row: int, batch: int, rows: slice, positions: slice) -> torch.Tensor:
        """Return a copy of some of its rows and positions."""
        if not self._away:
            return self._bring(row, batch, rows, positions)
        return self._arrived(self._later(self._bring, row, batch, rows, positions))

    def drop(self, row: int) -> None:
        """Forget a row, and delete its file."""
        self._settle()
        wait(self._ahead.values())  # of a row that goes nothing is wanted any more
        self._ahead.clear()
        self._rows.pop(row, None)
        self._maps.pop(row, None)
        if self._folder is not None:
            self._path(row).unlink(missing_ok=True)

    def flush(self, row: int) -> None:
        """Force a row to disk, so that a later process may build on it."""
        self._settle()
        if row in self._maps:
            self._maps[row].flush()

    def _later(self, do: Callable[..., Moved], *what: Any) -> Future[Moved]:
        self._thread = self._thread or ThreadPoolExecutor(1)
        after = moment(self._device)

        def work() -> Moved:
            with on_its_way(self._device, self._label, after), torch.no_grad():
                return do(*what)

        return self._thread.submit(work)

    def _arrived(self, coming: Future[torch.Tensor]) -> torch.Tensor:
        wait([coming])
        if self._behind is not None and self._behind.done():
            self._settle()  # first, since what could not be kept cannot be brought
        return taken_over(coming.result())

    def _settle(self) -> None:
        """Wait for what was put last; if it could not be kept, say so."""
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.result()

    def _store(self, row: int, batch: int, value: torch.Tensor) -> None:
        if row not in self._rows:
            self._rows[row] = self._open(row, make=True) if self._folder is not None else self._hold()
        self._place(row, batch).copy_(value)

    def _bring(self, row: int, batch: int, rows: slice = slice(None), positions: slice = slice(None)) -> torch.Tensor:
        if row not in self._rows and self._folder is not None:
            self._rows[row] = self._open(row, make=False)
        return self._place(row, batch)[rows, positions].to(self._device, copy=True)

    def _path(self, row: int) -> Path:
        return present(self._folder) / f"{self._label}-{row:05d}.bin"

    def _place(self, row: int, batch: int) -> torch.Tensor:
        start, stop = self._starts[batch], self._starts[batch + 1]
        return self._rows[row][start:stop].view(self._shapes[batch])

    def _hold(self) -> torch.Tensor:
        pinned = self._home.type == "cpu" and self._device.type == "cuda"
        if pinned or self._home.type != "cpu":
            return torch.empty(int(self._starts[-1]), dtype=self._dtype, device=self._home, pin_memory=pinned)
        return torch.frombuffer(mmap.mmap(-1, self._bytes), dtype=self._dtype)

    def _open(self, row: int, make: bool) -> torch.Tensor:
        path = self._path(row)
        with naming(path), path.open("w+b" if make and not path.exists() else "r+b") as file:
            if make and path.stat().st_size != self._bytes:
                reserve(file.fileno(), 0, self._bytes)  # a write to a mapped hole on a full disk would kill the process
            self._maps[row] = mmap.mmap(file.fileno(), self._bytes)
        return torch.frombuffer(self._maps[row], dtype=self._dtype)

    @property
    def _bytes(self) -> int:
        return int(self._starts[-1]) * self._dtype.itemsize


def bytes_needed(shapes: Sequence[Shape], rows: int, dtype: torch.dtype) -> int:
    """Return the bytes of so many rows."""
    return rows * dtype.itemsize * sum(math.prod(shape) for shape in shapes)


def enter_some(
    stack: Stack, batches: Iterable[tuple[int, torch.Tensor]], states: States, row: int = 0
) -> dict[int, tuple[Arguments, ...]]:
    """Put the embedding's outputs of numbered batches into a row of `states`; returns, by number, their arguments.

    Batches of one shape share their arguments where these are equal, as they are unless a family computes them from
    the tokens.
    """
    shared: dict[tuple[int, ...], tuple[Arguments, ...]] = {}
    result = {}
    needed = stack.outer("in") if stack.layers else []
    with stack.loaded.weights.resident(needed, stack.inner(0)), torch.no_grad():
        for number, ids in batches:
            call = stack.enter(ids)
            states.put(row, number, call.hidden)
            known = shared.setdefault(tuple(ids.shape), call.arguments)
            result[number] = known if alike(known, call.arguments, _equal) else call.arguments
    return result


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def hidden_layout(stack: Stack, batches: Sequence[torch.Tensor]) -> tuple[list[tuple[int, ...]], torch.dtype]:
    """Return the shape of each batch's hidden state, and their dtype, found on two tokens."""
    if not stack.layers or not batches:
        return [tuple(ids.shape) for ids in batches], torch.int64
    with stack.loaded.weights.resident(stack.outer("in")), torch.no_grad():
        hidden = stack.enter(batches[0][:1, :2]).hidden
    return [(*ids.shape, *hidden.shape[2:]) for ids in batches], hidden.dtype
