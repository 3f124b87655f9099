"""What every kind of score is: its schema, what it needs, which tensors it can score, its words, and its arithmetic.

There are three sorts, by what a score is made from:

    WeightScore      a function of the weights alone, tensor by tensor
    ForwardScore     what is noted of the matrix products of a pass forward, language by language
    BackwardScore    the gradients of a pass forward and back, language by language

A kind is one file that extends one of them. Scores are float32, not negative, in the shapes on disk.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import Place
from surgeon.checkpoint.storage import TensorInfo
from surgeon.recipe.fields import Count, Model

if TYPE_CHECKING:
    import torch

    from surgeon.scores.statistics import RunningStatistics, Statistic

# Pieces of a language. More of them can be dealt out more evenly; each costs another sum of a layer, which is added up
# here, or sent: with four, adding takes under one per cent of a pass, and six languages keep 24 processes busy.
PIECES = 4
Reader = Callable[[str], NDArray[np.float32]]  # from a tensor's name to its scores


class Score(Model):
    """Base of the three sorts."""

    if TYPE_CHECKING:
        kind: str

    backward: ClassVar[bool] = False  # whether it needs gradients
    bytes_per_entry: ClassVar[int] = 0  # of memory that computing it takes beside the scores, of one tensor

    @property
    def on_text(self) -> SampledScore | None:
        """This score, if it is made on text."""
        return None

    @property
    def labels(self) -> list[str]:
        """The languages that it is made for; one empty name if it is made without text."""
        return [""]

    @property
    def compared_with(self) -> Mapping[str, str]:
        """Other models that it reads, by the key that names them."""
        return {}

    def can_score(self, info: TensorInfo, where: Place) -> bool:
        """True if the score is defined for a tensor."""
        return True

    @property
    def limits(self) -> str | None:
        """Which tensors it is defined for, in words; None if for all."""
        return None

    @abstractmethod
    def described(self) -> str:
        """Return what is computed, in a line of the plan."""


class WeightScore(Score):
    """A score of weights alone: no model is run and no text read."""

    @abstractmethod
    def reader(self, checkpoint: Checkpoint) -> Reader:
        """Return the function from a tensor's name to its scores."""


class SampledScore(Score):
    """What the scores that run the model on text have in common (docs/method.md); a score per language."""

    languages: Annotated[list[str], Field(min_length=1)] = Field(
        description="codes of the corpus's languages to score on"
    )
    samples: Count = Field(64, description="sequences per language, at most; fewer if the text runs out")
    sequence_length: Annotated[int, Field(ge=2)] = Field(256, description="in tokens")
    batch_size: Count = Field(4, description="sequences per step; summed over if `reduction` is absolute")
    dtype: Literal["auto", "float32", "native"] = Field(
        "auto", description="arithmetic: float32, or the weights' own dtype; auto is float32 on every device"
    )

    version: ClassVar[int] = 1  # of the kind's arithmetic: raise it when the same settings give other scores

    @property
    def on_text(self) -> SampledScore | None:
        """This score."""
        return self

    @property
    def labels(self) -> list[str]:
        """The languages, each once, in the recipe's order."""
        return list(dict.fromkeys(self.languages))

    @property
    def settings(self) -> dict[str, Any]:
        """What a language's scores depend on beside the model, the text and the arithmetic."""
        return {"version": self.version, **self.model_dump(exclude={"languages", "dtype"})}

    @property
    def variety(self) -> str:
        """The kind, and what sets it apart from others of its kind."""
        return self.kind

    def described(self) -> str:
        """Return what is computed on which languages, and the size of the sample."""
        sample = f"at most {self.samples} sequences of {self.sequence_length} tokens each"
        return f"{self.variety} on {', '.join(self.languages)}: {sample}"


class ForwardScore(SampledScore):
    """A score of what goes through the matrices in a pass forward."""

    @abstractmethod
    def statistics(self, inputs: torch.Tensor, outputs: torch.Tensor) -> Iterable[Statistic]:
        """Return what is noted of one product: inputs (tokens, inputs) and outputs (tokens, outputs)."""

    @abstractmethod
    def scores(self, running: RunningStatistics) -> dict[str, torch.Tensor]:
        """Return the scores of a layer's tensors in one language from all that was noted there, on any device."""


class BackwardScore(SampledScore):
    """A score of gradients: a sum over batches, from which the scores are made."""

    backward: ClassVar[bool] = True

    @property
    def sums_gradients(self) -> bool:
        """True if the sum is that of the gradients themselves, which autograd adds up."""
        return False

    def contribution(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return what one batch adds to the sum: float32, of the parameter's shape; may reuse `gradient`'s memory."""
        return gradient

    @abstractmethod
    def score(self, weight: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Return the scores from the sum over all batches; both float32; may reuse `total`'s memory."""
