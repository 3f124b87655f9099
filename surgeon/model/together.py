"""Several ranks at one model: rank 0 says what there is to do, and each does its part with the model as it sees it.

Rank 0 carries out the recipe. Where there is work for all it shares a `Part`, which says all that a rank has to know,
and then does its own; the other ranks do nothing but `assist`. A rank that does not see the model's files gets what it
needs of them from rank 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from surgeon import ranks
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError
from surgeon.memory import require_room_for_torch
from surgeon.model.precision import Precision
from surgeon.model.prospect import keep_prospect
from surgeon.model.supply import Supply, make_stand_in, stand_in_for

if TYPE_CHECKING:
    from surgeon.model.layer_stack import Stack

_UNTIL_THEN = timedelta(days=30)  # what rank 0 does by itself, such as an upload, takes as long as it takes


class Part(Protocol):
    """Something that all ranks do at the same time; it can be pickled. `model` is the folder of the checkpoint."""

    model: str

    def assist(self, models: Models) -> None:
        """Do what a rank other than the first does of it."""


@dataclass(frozen=True)
class End:
    """There is nothing more to do; `result` is what came of it all."""

    result: Any


@dataclass
class Models:
    """The models that a rank has opened, by folder, and in each arithmetic."""

    device: str
    jobs: int
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    stacks: dict[tuple[str, Precision], Stack] = field(default_factory=dict)

    def sees(self, folder: str) -> bool:
        """True if this rank sees the model's files; it has opened them then."""
        try:
            if folder not in self.checkpoints:
                self.checkpoints[folder] = Checkpoint.open(folder)
        except CheckpointError:
            return False
        return self.checkpoints[folder].folder == Path(folder)

    def stack(self, folder: str, precision: Precision) -> Stack:
        """Return a model that has been loaded (`Loading`)."""
        return self.stacks[folder, precision]


def load_stack(checkpoint: Checkpoint, precision: Precision, device: str) -> Stack:
    """Build a model on this rank, the first, and on all others."""
    require_room_for_torch()
    if ranks.world() == 1:
        stack = _build(checkpoint, precision, device, None)
        if not stack.layers:  # which a plan could not know where only a comparison with the whole model shows it
            keep_prospect(checkpoint, whole=True)
        return stack
    sizes = {header.path.name: header.file_size for header in checkpoint.headers}
    ranks.share(Loading(str(checkpoint.folder), precision, sizes))
    blind = [rank for rank, sees in enumerate(ranks.gather(True)) if not sees]
    ranks.share(blind)
    stand_in = stand_in_for(checkpoint) if blind else None
    for rank in blind:
        ranks.send_value(stand_in, rank)
    return _build(checkpoint, precision, device, Supply(checkpoint, False) if blind else None)


@dataclass(frozen=True)
class Loading:
    """A model that every rank builds; `sizes` are those of its weight files."""

    model: str
    precision: Precision
    sizes: dict[str, int]

    def assist(self, models: Models) -> None:
        """Build the model from the files, or from what rank 0 sends of them."""
        sees = models.sees(self.model)
        if sees:
            headers = models.checkpoints[self.model].headers
            sees = {header.path.name: header.file_size for header in headers} == self.sizes
        ranks.gather(sees)
        blind = ranks.share()
        if not sees:
            folder = make_stand_in(ranks.receive_value(0))
            models.checkpoints[self.model] = Checkpoint.open(folder)
        supply = Supply(models.checkpoints[self.model], not sees) if blind else None
        stack = _build(models.checkpoints[self.model], self.precision, models.device, supply)
        models.stacks[self.model, self.precision] = stack


def _build(checkpoint: Checkpoint, precision: Precision, device: str, supply: Supply | None) -> Stack:
    from surgeon.model.layer_stack import make_stack
    from surgeon.model.model import load_model

    loaded = load_model(checkpoint, precision, device, None if supply is None else supply.read)
    if supply is not None:  # all ranks have to ask for the same tensors at the same time
        loaded.weights.stays = ranks.share(loaded.weights.stays)
    return make_stack(loaded)


def assist(device: str, jobs: int) -> Any:
    """Do a rank's part of whatever rank 0 has for all; returns what came of it in the end."""
    models = Models(ranks.own_device(device), jobs)
    while True:
        part = ranks.share(patience=_UNTIL_THEN)
        if isinstance(part, End):
            return part.result
        part.assist(models)
