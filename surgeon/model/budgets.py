"""How much memory running a model may take; what a plan says of memory follows from it.

Budgets follow the machine, as it is when they are asked for, and each can be set by a variable of the environment.
"""

from __future__ import annotations

import os
import re

from surgeon.errors import InputError
from surgeon.memory import free_memory

HOST = "SURGEON_MEMORY"  # of the host's memory, such as 8G: weights, hidden states, sums and activations together
DEVICE = "SURGEON_DEVICE_MEMORY"  # the same of an accelerator's
SHARE_OF_HOST = 0.5  # of what is free: estimates may be off by a quarter, and other programs go on meanwhile
SHARE_OF_DEVICE = 0.7  # the rest is for activations of kernels, whose workspaces nobody tells beforehand
# Set in place of a share of the above: what a model may take to stay in memory, and hidden states between layers.
RESIDENT_BYTES: int | None = None
HIDDEN_BYTES: int | None = None
_SHARE_THAT_STAYS = 0.5  # of a budget: a model that stays leaves as much for what is computed with it
_SHARE_OF_HIDDEN = 0.25  # of a budget: hidden states and their gradients take one each, and half is for layers
LOGITS_BYTES = 16_000_000  # of one chunk's logits in float32; some five such tensors are alive at a time
EDITS_BYTES = 1 << 27  # of variants' edits, where a pass for every token would make them anew
EDIT_BYTES_PER_ENTRY = 16  # of an edit: its place, and its value before and after
FEWEST_TOKENS = 64  # of a chunk: with fewer the projection's matrix is read more often than it is worth
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def chunk_tokens(vocabulary: int) -> int:
    """Return how many tokens' logits are computed at a time."""
    return max(FEWEST_TOKENS, LOGITS_BYTES // (4 * max(vocabulary, 1)))


def memory(device: str = "cpu") -> int:
    """Return the bytes that running a model may take on a device, as set, or a share of what is free there now.

    Raises:
        InputError: the variable holds no number of bytes.
    """
    if device.startswith(("cuda", "mps")):
        found = _set(DEVICE)
        return int(_free_on(device) * SHARE_OF_DEVICE) if found is None else found
    found = _set(HOST)
    return int(free_memory() * SHARE_OF_HOST) if found is None else found


def resident_bytes(device: str = "cpu") -> int:
    """Return how large a model may be in its arithmetic to stay in a device's memory once it is there."""
    if device != "cpu":
        return memory(device)
    return int(memory() * _SHARE_THAT_STAYS) if RESIDENT_BYTES is None else RESIDENT_BYTES


def hidden_bytes(device: str = "cpu") -> int:
    """Return how much hidden states between layers may take of a device's memory."""
    return int(memory(device) * _SHARE_OF_HIDDEN) if HIDDEN_BYTES is None else HIDDEN_BYTES


def home_of_hidden(size: int, device: str) -> str | None:
    """Return where so many bytes of hidden states stay between layers: on the device, else on the host, else on disk.

    None stands for scratch files.
    """
    return next((home for home in dict.fromkeys((device, "cpu")) if size <= hidden_bytes(home)), None)


def _set(variable: str) -> int | None:
    said = os.environ.get(variable, "").strip()
    if not said:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", said.upper())
    if found is None:
        raise InputError(f"{variable}={said}: write a number of bytes, such as 8G or 500M")
    return int(float(found[1]) * _UNITS[found[2]])


def _free_on(device: str) -> int:
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
