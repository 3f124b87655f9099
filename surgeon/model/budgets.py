"""How much memory running a model may take, beside the layers at hand; what a plan says of memory follows from it."""

from __future__ import annotations

RESIDENT_BYTES = 1 << 28  # on a CPU, a model no larger than this in its arithmetic stays in memory once it is there
HIDDEN_BYTES = 1 << 28  # of hidden states between layers; more goes into mapped scratch files
LOGITS_BYTES = 16_000_000  # of one chunk's logits in float32; some five such tensors are alive at a time
EDITS_BYTES = 1 << 27  # of variants' edits, where a pass for every token would make them anew
EDIT_BYTES_PER_ENTRY = 16  # of an edit: its place, and its value before and after
FEWEST_TOKENS = 64  # of a chunk: with fewer the projection's matrix is read more often than it is worth


def chunk_tokens(vocabulary: int) -> int:
    """Return how many tokens' logits are computed at a time."""
    return max(FEWEST_TOKENS, LOGITS_BYTES // (4 * max(vocabulary, 1)))
