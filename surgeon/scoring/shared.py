"""A pass as all processes of a team are told of it: what is scored, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgeon.checkpoint.storage import TensorInfo
from surgeon.model.layer_stack import Stack
from surgeon.model.precision import Precision
from surgeon.model.workplace import Workplace
from surgeon.progress import Progress
from surgeon.scores.backward_pass import Progressed
from surgeon.scores.base import SampledScore
from surgeon.scores.score_pass import ScorePass
from surgeon.team import Team


@dataclass(frozen=True)
class SharedScorePass:
    """A pass of which every process does some pieces.

    `begun` special tokens at the beginning of each sequence are not predicted. `key` names what is kept of the pass if
    it is interrupted, and `goes_on` says whether it then goes on and does not begin anew.
    """

    model: str
    sequences: Mapping[str, Sequence[Sequence[int]]]
    begun: int
    tensors: Sequence[TensorInfo]
    score: SampledScore
    precision: Precision
    key: str
    goes_on: bool
    in_one_go: bool

    def over(self, stack: Stack, progress: Progress, team: Team) -> ScorePass:
        """Return the pass through a model; it is in one go only where every process holds the whole of it."""
        in_one_go = self.in_one_go and all(team.everyones(stack.loaded.weights.stays))
        return ScorePass(stack, self.sequences, self.tensors, self.score, progress, self.begun, team, in_one_go)

    def help(self, place: Workplace) -> None:
        """Run this process's batches; the scores come elsewhere."""
        score_pass = self.over(place.stack(self.model, self.precision), Progress(), place.team)
        with score_pass.scratch(self.key) as scratch:
            for _ in score_pass.run(scratch, score_pass.start(scratch) if self.goes_on else Progressed()):
                pass
