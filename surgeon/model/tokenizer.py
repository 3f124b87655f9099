"""The tokenizer that lies beside a checkpoint's weights."""

from __future__ import annotations

from typing import Any

from surgeon import foreign
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError
from surgeon.memory import require_room, require_room_for_torch


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer that lies beside the weights.

    Raises:
        CheckpointError: there is none, or transformers cannot read it.
    """
    require_room_for_torch()  # which transformers loads
    require_room("a tokenizer", 64 << 20, 64 << 20)
    try:
        return foreign.load_tokenizer(checkpoint.folder)
    except MemoryError:
        raise
    except foreign.ForeignCode as error:
        raise CheckpointError(
            f"{checkpoint.folder}: {error}, which surgeon does not run; put the files of a tokenizer of "
            "transformers' own there (tokenizer.json, and a tokenizer_config.json without auto_map)"
        ) from None
    except Exception as error:  # the readers of its files raise what they like, also bare `Exception`
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{checkpoint.folder}: no usable tokenizer beside the weights ({first}); copy the tokenizer files there"
        ) from None
