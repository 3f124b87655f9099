"""How much memory running a model may take; what a plan says of memory follows from it.

Budgets follow the machine, as it is when they are asked for, and each can be set by a variable of the environment.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from surgeon.errors import InputError
from surgeon.memory import free_memory

HOST = "SURGEON_MEMORY"  # of the host's memory, such as 8G: weights, hidden states, sums and activations together
DEVICE = "SURGEON_DEVICE_MEMORY"  # the same of an accelerator's
SHARE_OF_HOST = 0.5  # of what is free: estimates may be off by a third, and other programs go on meanwhile
SHARE_OF_DEVICE = 0.7  # the rest is for activations of kernels, whose workspaces nobody tells beforehand
# Set in place of a share of the above: what a model may take to stay in memory, and hidden states between layers.
RESIDENT_BYTES: int | None = None
HIDDEN_BYTES: int | None = None
_SHARE_THAT_STAYS = 0.5  # of the host's: a model that stays leaves as much for what is computed with it
_STAYS_ON_DEVICE = 0.75  # of an accelerator's, where what a layer computes has a share of its own
_SHARE_OF_HIDDEN = 0.25  # of the host's: hidden states and their gradients take one each, and half is for layers
# Of the host's, where the model is elsewhere; torch may round what it pins up to a power of two.
_SHARE_BESIDE = 0.5
_SUMS = 4  # of a layer, in float32: gradients, their sum in a piece, that of the pieces before it, that of languages
LOGITS_BYTES = 16_000_000  # of one chunk's logits in float32; some five such tensors are alive at a time
# The same on a GPU: its arithmetic on a small chunk takes less time than to tell it what to compute.
LOGITS_BYTES_ON_GPU = 256_000_000
EDITS_BYTES = 1 << 27  # of variants' edits, where a pass for every token would make them anew
EDIT_BYTES_PER_ENTRY = 16  # of an edit: its place, and its value before and after
FEWEST_TOKENS = 64  # of a chunk: with fewer the projection's matrix is read more often than it is worth
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def chunk_tokens(vocabulary: int, device: str = "cpu") -> int:
    """Return how many tokens' logits are computed at a time; not by what is free, as it decides on the last bits."""
    size = LOGITS_BYTES_ON_GPU if device.startswith("cuda") else LOGITS_BYTES
    return max(FEWEST_TOKENS, size // (4 * max(vocabulary, 1)))


def memory(device: str = "cpu") -> int:
    """Return the bytes that running a model may take on a device, as set, or a share of what is free there now.

    Raises:
        InputError: the variable holds no number of bytes.
    """
    if device.startswith(("cuda", "mps")):
        limit = _set(DEVICE)
        return int(_free_on(device) * SHARE_OF_DEVICE) if limit is None else limit
    limit = _set(HOST)
    return int(free_memory() * SHARE_OF_HOST) if limit is None else limit


def device_memory_is_set() -> bool:
    """True if a variable says how much of an accelerator's memory may be taken, so that none needs to be asked."""
    return _set(DEVICE) is not None


def resident_bytes(device: str = "cpu") -> int:
    """Return how large a model may be in its arithmetic to stay in a device's memory once it is there."""
    if device != "cpu":
        return int(memory(device) * _STAYS_ON_DEVICE)
    return int(memory() * _SHARE_THAT_STAYS) if RESIDENT_BYTES is None else RESIDENT_BYTES


@dataclass(frozen=True)
class ModelSize:
    """A model on an accelerator that had `memory` for it; entries in `all`, and in the `largest` part that is scored.

    That part is a layer, or what is outside the layers. `stays` says if all of it does.
    """

    memory: int
    all: int
    largest: int
    stays: bool

    @property
    def left(self) -> int:
        """Return what weights, in float32, and the sums of a part leave for hidden states, in bytes."""
        return self.memory - 4 * ((self.all if self.stays else 2 * self.largest) + _SUMS * self.largest)


def home_of_hidden(size: int, device: str, model: ModelSize) -> str | None:
    """Return where so many bytes of hidden states stay between layers: on the device, else on the host, else on disk.

    None stands for scratch files.
    """
    if device == "cpu" or HIDDEN_BYTES is not None:
        return device if size <= hidden_bytes() else None
    if size <= model.left:
        return device
    return "cpu" if size <= memory() * _SHARE_BESIDE else None


def hidden_bytes() -> int:
    """Return how much hidden states between layers may take of the host's memory, where the model runs there."""
    return int(memory() * _SHARE_OF_HIDDEN) if HIDDEN_BYTES is None else HIDDEN_BYTES


def _set(variable: str) -> int | None:
    said = os.environ.get(variable, "").strip()
    if not said:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", said.upper())
    if match is None:
        raise InputError(f"{variable}={said}: write a number of bytes, such as 8G or 500M")
    return int(float(match[1]) * _UNITS[match[2]])


def _free_on(device: str) -> int:
    import torch

    if device.startswith("cuda"):  # what torch keeps ready for this process is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
