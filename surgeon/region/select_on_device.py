"""The exact cuts of `select`, where the scores are: the same entries to the last tie; only packed masks come down.

The k-th score is found by the same counting, on the device: two histograms of sixteen bits each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import InputError
from surgeon.region.region import Indices, Mask, encode_packed
from surgeon.region.select import as_matrices

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 24  # keys that are counted at a time: counting takes twelve bytes for each
_INFINITY = 0x7F800000  # as in `select`


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
    keys = {name: keys_on_device(name, values) for name, values in scores}
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
        result[name] = _mask(chosen, values)
    return result


def select_least_on_device(name: str, scores: torch.Tensor, least: float) -> Mask:
    """Return the mask of the scores of one tensor that are at least so high.

    Raises:
        InputError: a score is negative or not a number.
    """
    return _mask(keys_on_device(name, scores) >= int(np.float32(least).view(np.int32)), scores)


def select_in_outputs_on_device(
    name: str, scores: torch.Tensor, fraction: float, kind: Literal["top", "bottom"], output_axis: int | None
) -> Mask:
    """Return the mask of what `select.select_in_outputs` selects.

    Raises:
        InputError: a score is negative or not a number.
    """
    import torch

    shape = as_matrices(tuple(scores.shape), output_axis)
    rows, chosen = keys_on_device(name, scores).view(shape), torch.zeros(shape, dtype=torch.bool, device=scores.device)
    lines = chosen
    if output_axis is not None and output_axis == scores.dim() - 1:
        rows, lines = rows.transpose(1, 2), chosen.transpose(1, 2)
    wanted, step = int(fraction * rows.shape[2]), max(1, _CHUNK // max(1, rows.shape[2]))
    for matrix, of_matrix in zip(rows, lines, strict=True):
        for part, of_part in zip(matrix.split(step), of_matrix.split(step), strict=True):
            order = torch.sort(~part if kind == "top" else part, dim=1, stable=True).indices[:, :wanted]
            of_part.scatter_(1, order, True)
    return _mask(chosen.view(-1), scores)


def histogram_on_device(keys: torch.Tensor) -> NDArray[np.int64]:
    """Return how many keys there are by their upper sixteen bits, on the host."""
    import torch

    counts = torch.zeros(1 << 16, dtype=torch.int64, device=keys.device)
    for chunk in _chunks([keys]):
        counts += torch.bincount(chunk >> 16, minlength=1 << 16)
    return counts.cpu().numpy()


def within_on_device(
    keys: torch.Tensor, bound: int, kind: Literal["top", "bottom"]
) -> tuple[Indices, NDArray[np.uint32]]:
    """Return the places and keys, on the host, whose upper sixteen bits are at least, or at most, a bound."""
    places = (keys >= bound << 16 if kind == "top" else keys < (bound + 1) << 16).nonzero()[:, 0]
    return places.cpu().numpy(), keys[places].cpu().numpy().view(np.uint32)


def _mask(chosen: torch.Tensor, scores: torch.Tensor) -> Mask:
    return encode_packed(_packed(chosen).cpu().numpy(), int(chosen.sum()), tuple(scores.shape))


def keys_on_device(name: str, scores: torch.Tensor) -> torch.Tensor:
    """Return scores, flat, as int32 that sort like them.

    Raises:
        InputError: a score is negative or not a number.
    """
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
