"""A sweep as all ranks are told of it: what is scored, on what, and what becomes of the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from surgeon.checkpoint.storage import TensorInfo
from surgeon.model.precision import Precision
from surgeon.model.stack import Stack
from surgeon.model.together import Models
from surgeon.plan.regions import RegionPlan
from surgeon.progress import Progress
from surgeon.region.region import Region
from surgeon.scores.controls import draw_like
from surgeon.scores.settings import ScoreSettings
from surgeon.scores.sweeps import Sweep


@dataclass(frozen=True)
class SharedSweep:
    """A sweep of which every rank takes some of the batches (see `together.Part`).

    `selected` are the regions, and their controls, that are made while it goes; None if whole scores are kept. Of
    several ranks those in `selecting` take the scores, a layer each in turns. `begun` special tokens at the beginning
    of each sequence are not predicted.
    """

    model: str
    sequences: Mapping[str, Sequence[Sequence[int]]]
    begun: int
    tensors: Sequence[TensorInfo]
    settings: ScoreSettings
    selecting: Sequence[int]
    selected: tuple[Sequence[RegionPlan], Sequence[RegionPlan]] | None
    key: str

    def sweep(self, stack: Stack, progress: Progress) -> Sweep:
        """Return the sweep over a model."""
        return Sweep(stack, self.sequences, self.tensors, self.settings, progress, self.selecting, self.begun)

    def select(self, sweep: Sweep) -> dict[str, Region]:
        """Compute the scores and keep only the regions."""
        assert self.selected is not None
        regions, controls = self.selected
        checkpoint = sweep.stack.loaded.checkpoint
        return sweep.select(regions, [(one, partial(draw_like, checkpoint, one)) for one in controls], self.key)

    def assist(self, models: Models) -> None:
        """Run this rank's batches, and select in its layers."""
        sweep = self.sweep(models.stack(self.model, cast(Precision, self.settings.precision)), Progress())
        if self.selected is not None:
            self.select(sweep)
            return
        with sweep.scratch(self.key) as scratch:
            for _ in sweep.run(scratch, sweep.start(scratch)):
                pass
