"""Where a device turns out to be full: the same again, with half as much at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from surgeon.progress import Progress


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
