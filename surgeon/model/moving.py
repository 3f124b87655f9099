"""Weights on their way to a device: as they are stored, and widened there."""

from __future__ import annotations

import torch

_streams: dict[torch.device, torch.cuda.Stream] = {}


def brought(stored: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return values on a device and in a dtype, once they are there; what crosses is no wider than what is stored.

    To a GPU they go from pinned memory and on a stream of its own, so that a thread that reads ahead does not wait for
    the arithmetic, nor the arithmetic for it. Use `taken_over` on what another stream is to compute with.
    """
    if device.type != "cuda":
        return stored.to(device).to(dtype)
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(_streams[device]):
        there = stored.contiguous().pin_memory().to(device, non_blocking=True).to(dtype)
    _streams[device].synchronize()
    return there


def taken_over(values: torch.Tensor) -> torch.Tensor:
    """Return the same, which the stream at hand computes with: its memory is not used again before that is done."""
    if values.is_cuda:
        values.record_stream(torch.cuda.current_stream(values.device))
    return values
