"""What a score on text is asked to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from surgeon.recipe.score_specs import Measure

Reduction = Literal["signed", "absolute"]


@dataclass(frozen=True)
class ScoreSettings:
    """Everything a score depends on beside the model and the text.

    With a `reduction` it is grad_param, with a `measure` activation, else Wanda.
    """

    samples: int
    sequence_length: int
    batch_size: int
    reduction: Reduction | None
    precision: str
    power: int = 1
    measure: Measure | None = None
