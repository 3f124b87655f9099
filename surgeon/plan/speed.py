"""How fast a device multiplies matrices, and copies to and from the host: tried out for a moment.

What an accelerator did is kept, since it is always the same; a processor's speed is what other work leaves of it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.plan.estimates import Shape

_AFFINE = hasattr(os, "sched_getaffinity")
_TRIED, _LONGEST = 0.1, 1.2  # seconds: long enough for some dozen products, short enough for a plan
_TRIES = 20  # at least, unless these take longest
_ROWS = 64  # of the matrices: so few that some products come to their end before other work takes the processor
_ROWS_ON_DEVICE = 1024  # a batch's tokens: with few of them it would be the reading of the other matrix that is timed
_COPIED = 1 << 26  # bytes


@dataclass(frozen=True)
class Speed:
    """Floating-point `operations` a second, and bytes a second in `copies` from pinned memory to the device."""

    operations: float
    copies: float = math.inf


def tried_speed(shape: Shape, device: str) -> Speed:
    """Return the speed of products of float32 matrices of the model's widths, at best, and of copies."""
    wide, hidden = max(min(shape.wide, 8192), 64), max(min(shape.hidden, 4096), 64)
    if device == "cpu":
        # The time that the processors spent is counted: that of the clock says how busy the machine is just now.
        return Speed(2 * _ROWS * hidden * wide * _threads() / _least(_on_cpu(hidden, wide), time.process_time))
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    path = path_of("speeds", sha256(repr((name, torch.__version__, hidden, wide)).encode()), ".json")
    known = recall(path)
    if known is None:
        operations = 2 * _ROWS_ON_DEVICE * hidden * wide / _least(_on_device(hidden, wide, device), time.perf_counter)
        known = asdict(Speed(operations, _COPIED / _least(_copy_to(device), time.perf_counter)))
        remember(path, known)
    return Speed(float(known["operations"]), float(known["copies"]))


def _least(once: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds that something takes where other work leaves it alone: the least of a moment.

    On a busy processor, threads that wait for one another spend most of the time: it takes a while until one of the
    tries is undisturbed.
    """
    once()
    taken: list[float] = []
    began = time.perf_counter()
    while (so_far := time.perf_counter() - began) < _TRIED or (len(taken) < _TRIES and so_far < _LONGEST):
        started = clock()
        once()
        taken.append(clock() - started)
    return max(min(taken), 1e-9)


def _threads() -> int:
    """Return how many threads products of matrices will use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return (
        int(told) if told.isdigit() and int(told) else len(os.sched_getaffinity(0)) if _AFFINE else os.cpu_count() or 1
    )


def _on_cpu(hidden: int, wide: int) -> Callable[[], object]:
    left, right = np.ones((_ROWS, hidden), np.float32), np.ones((hidden, wide), np.float32)
    out = np.empty((_ROWS, wide), np.float32)
    return lambda: np.matmul(left, right, out=out)


def _on_device(hidden: int, wide: int, device: str) -> Callable[[], object]:
    import torch

    left = torch.ones(_ROWS_ON_DEVICE, hidden, device=device)  # float32, as models are run unless told otherwise
    right = torch.ones(hidden, wide, device=device)
    return lambda: float((left @ right)[0, 0])  # which waits for the device


def _copy_to(device: str) -> Callable[[], object]:
    import torch

    source = torch.ones(_COPIED, dtype=torch.uint8, pin_memory=device.startswith("cuda"))
    return lambda: int(source.to(device)[0])
