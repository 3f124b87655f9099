"""A pass as all ranks are told of it: what is scored, on what, and what becomes of the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgeon.checkpoint.storage import TensorInfo
from surgeon.model.layer_stack import Stack
from surgeon.model.precision import Precision
from surgeon.model.together import Models
from surgeon.progress import Progress
from surgeon.region.region import Region
from surgeon.regions.base import RegionPlan
from surgeon.scores.base import SampledScore
from surgeon.scores.score_pass import ScorePass
from surgeon.scoring.select import select_in_pass


@dataclass(frozen=True)
class SharedScorePass:
    """A pass of which every rank takes some of the batches (see `together.Part`).

    `plans` are the regions that are made while it goes, those that they are drawn like among them; none if whole scores
    are kept. Of several ranks those in `selecting` take the scores, a layer each in turns. `begun` special tokens at
    the beginning of each sequence are not predicted.
    """

    model: str
    sequences: Mapping[str, Sequence[Sequence[int]]]
    begun: int
    tensors: Sequence[TensorInfo]
    score: SampledScore
    precision: Precision
    selecting: Sequence[int]
    plans: Mapping[str, RegionPlan]
    key: str

    def score_pass(self, stack: Stack, progress: Progress) -> ScorePass:
        """Return the pass over a model."""
        return ScorePass(stack, self.sequences, self.tensors, self.score, progress, self.selecting, self.begun)

    def select(self, score_pass: ScorePass) -> dict[str, Region]:
        """Compute the scores and keep only the regions."""
        return select_in_pass(score_pass, self.plans, self.key)

    def assist(self, models: Models) -> None:
        """Run this rank's batches, and select in its layers."""
        score_pass = self.score_pass(models.stack(self.model, self.precision), Progress())
        if self.plans:
            self.select(score_pass)
            return
        with score_pass.scratch(self.key) as scratch:
            for _ in score_pass.run(scratch, score_pass.start(scratch)):
                pass
