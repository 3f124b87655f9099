"""What one process works with: its device and threads, its team, and the models that it has loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.memory import require_room_for_torch
from surgeon.model.arithmetic import Precision
from surgeon.model.prospect import keep_prospect
from surgeon.team import ALONE, Team

if TYPE_CHECKING:
    from surgeon.model.layer_stack import Stack


@dataclass
class Workplace:
    """A process at its work; `jobs` are threads that copy and hash."""

    device: str
    jobs: int
    team: Team = ALONE
    _stacks: dict[tuple[str, Precision], Stack] = field(default_factory=dict)

    def load(self, checkpoint: Checkpoint, precision: Precision) -> Stack:
        """Build a model, here and wherever others will help with it; once in each arithmetic.

        Raises:
            CheckpointError: see `load_model`.
        """
        folder = str(checkpoint.folder)
        if (folder, precision) not in self._stacks:
            self.team.begin(Loading(folder, precision))
            self._build(folder, checkpoint, precision)
        return self._stacks[folder, precision]

    def stack(self, folder: str, precision: Precision) -> Stack:
        """Return a model that has been loaded."""
        return self._stacks[folder, precision]

    def _build(self, folder: str, checkpoint: Checkpoint, precision: Precision) -> None:
        require_room_for_torch()
        from surgeon.model.layer_stack import Stack, make_stack
        from surgeon.model.model import load_model

        stack = make_stack(load_model(checkpoint, precision, self.device))
        plain = self.team.everyones(bool(stack.layers))
        if not all(plain):  # all must go the same way
            stack = Stack(stack.loaded, (), False)
        if not stack.layers:  # which a plan could not know where only a comparison with the whole model shows it
            keep_prospect(checkpoint, whole=True)
        self._stacks[folder, precision] = stack


@dataclass(frozen=True)
class Loading:
    """A model that every process of a team builds."""

    model: str
    precision: Precision

    def help(self, place: Workplace) -> None:
        """Build it from the files, or from what was sent of them."""
        place._build(self.model, Checkpoint.open(place.team.local(self.model)), self.precision)
