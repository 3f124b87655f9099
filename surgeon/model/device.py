"""A device beside the host: copies between both that nobody waits for, and what to do where it turns out to be full.

Copies are on a stream of their own, made by a thread of their own, which goes through `on_its_way`. What it makes
there is complete when it hands it over, so that no buffer on the host is read, filled again or let go while a copy is
under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from surgeon.progress import Progress

_streams: dict[tuple[torch.device, str], torch.cuda.Stream] = {}


@contextmanager
def on_its_way(device: torch.device, what: str, after: torch.cuda.Event | None = None) -> Iterator[None]:
    """Have a GPU make the copies of this thread beside its arithmetic; they are complete at the end.

    `what` names the stream; `after` is a moment of the arithmetic (`moment`) that has to be over before they begin.
    """
    if device.type != "cuda":
        yield
        return
    if (device, what) not in _streams:
        _streams[device, what] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream = _streams[device, what]
    if after is not None:
        stream.wait_event(after)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def moment(device: torch.device) -> torch.cuda.Event | None:
    """Return what marks the end of all that a GPU has been told to compute so far."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def brought(stored: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return weights on a device and in a dtype, once they are there; what crosses is no wider than what is stored.

    To a GPU they go from pinned memory. Use `taken_over` on what another stream is to compute with.
    """
    if device.type != "cuda":
        return stored.to(device).to(dtype)
    with on_its_way(device, "weights"):
        return stored.contiguous().pin_memory().to(device, non_blocking=True).to(dtype)


def taken_over(values: torch.Tensor) -> torch.Tensor:
    """Return the same, which the stream at hand computes with: its memory is not used again before that is done."""
    if values.is_cuda:
        values.record_stream(torch.cuda.current_stream(values.device))
    return values


def wait_for_arithmetic(device: torch.device) -> None:
    """Wait until a GPU has computed all that it was told to; else it is told more and more, and all takes memory."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def with_less_at_a_time(
    rows: int, do: Callable[[int], None], device: str, progress: Progress, may_halve: bool = True
) -> None:
    """Do something with so many texts of a batch at a time; where memory is short, anew with half as many, and say so.

    Raises:
        torch.OutOfMemoryError: one is too many, or it may not be halved.
    """
    while rows:
        try:
            do(rows)
            return
        except torch.OutOfMemoryError:
            if rows == 1 or not may_halve:
                raise
        rows //= 2
        progress.note(f"out of memory on {device}: {rows} of a batch's texts at a time")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
