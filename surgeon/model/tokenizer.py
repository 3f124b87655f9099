"""The tokenizer that lies beside a checkpoint's weights."""

from __future__ import annotations

from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer that lies beside the weights.

    Raises:
        CheckpointError: there is none, or transformers cannot read it.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(checkpoint.folder)
    except MemoryError:
        raise
    except Exception as error:  # the readers of its files raise what they like, also bare `Exception`
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{checkpoint.folder}: no usable tokenizer beside the weights ({first}); copy the tokenizer files there"
        ) from None
