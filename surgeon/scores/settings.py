"""What a score on text is asked to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reduction = Literal["signed", "absolute"]


@dataclass(frozen=True)
class ScoreSettings:
    """Everything a score depends on beside the model and the text; with a `reduction` it is grad_param, else wanda."""

    samples: int
    sequence_length: int
    batch_size: int
    reduction: Reduction | None
    precision: str
