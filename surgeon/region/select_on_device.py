"""The exact cut of `select`, where the scores are: the same entries to the last tie; only packed masks come down.

The k-th score is found by the same counting, on the device: two histograms of sixteen bits each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from surgeon.errors import InputError
from surgeon.region.region import Mask, encode_packed

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 24  # keys that are counted at a time: counting takes twelve bytes for each
_INFINITY = 0x7F800000


def select_count_on_device(
    scores: Sequence[tuple[str, torch.Tensor]], wanted: int, kind: Literal["top", "bottom"]
) -> dict[str, Mask]:
    """Return the masks of the `wanted` highest or lowest scores of tensors that share a cut.

    Args:
        scores: float32, non-negative, by name, on any device; ties go to the first of them, then to the lower index.
        wanted: how many entries of all of them together.
        kind: the end that they are taken from.

    Raises:
        InputError: a score is negative or not a number.
    """
    keys = {name: _keys(name, values) for name, values in scores}
    threshold, ties_wanted = _threshold(list(keys.values()), wanted, kind) if wanted else (-1, 0)
    result = {}
    for name, values in scores:
        mine = keys[name]
        chosen = mine > threshold if kind == "top" else mine < threshold
        if not wanted:
            chosen = mine < 0
        elif ties_wanted:
            ties = (mine == threshold).nonzero()[:ties_wanted, 0]
            chosen[ties] = True
            ties_wanted -= ties.numel()
        result[name] = encode_packed(_packed(chosen).cpu().numpy(), int(chosen.sum()), tuple(values.shape))
    return result


def _keys(name: str, scores: torch.Tensor) -> torch.Tensor:
    """Return scores, flat, as int32 that sort like them."""
    import torch

    keys = scores.contiguous().reshape(-1).view(torch.int32)
    if keys.numel() and bool((keys.max() > _INFINITY) | (keys.min() < 0)):  # not-a-number, or negative
        raise InputError(f"the scores of tensor '{name}' hold values that are negative or not numbers")
    return keys


def _threshold(keys: Sequence[torch.Tensor], wanted: int, kind: str) -> tuple[int, int]:
    """Return the k-th key and how many entries that equal it are wanted."""
    import torch

    high = torch.zeros(1 << 16, dtype=torch.int64, device=keys[0].device)
    for chunk in _chunks(keys):
        high += torch.bincount(chunk >> 16, minlength=1 << 16)
    high_bin, wanted = _kth_bin(high, wanted, kind)
    low = torch.zeros_like(high)
    for chunk in _chunks(keys):
        low += torch.bincount(chunk[chunk >> 16 == high_bin] & 0xFFFF, minlength=1 << 16)
    low_bin, wanted = _kth_bin(low, wanted, kind)
    return high_bin << 16 | low_bin, wanted


def _kth_bin(histogram: torch.Tensor, wanted: int, kind: str) -> tuple[int, int]:
    """Return the bin that holds the k-th entry from the top or bottom, and which one of the bin's it is, from 1."""
    ordered = histogram.flip(0) if kind == "top" else histogram
    reached = ordered.cumsum(0)
    position = int((reached < wanted).sum())
    before = int(reached[position - 1]) if position else 0
    return (len(ordered) - 1 - position if kind == "top" else position), wanted - before


def _chunks(keys: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    import torch

    return [chunk for mine in keys for chunk in torch.split(mine, _CHUNK) if chunk.numel()]


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """Return a flat mask as bits, in the order of `numpy.packbits`."""
    import torch

    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=mask.device)
    return (bits * places).sum(1, dtype=torch.uint8)
