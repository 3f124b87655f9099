"""What ranks do in the tests: `apply`, with what a test has to change in the process beforehand."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import surgeon.run
from surgeon.ranks import group, team


def apply(recipe: str, output: str, share_of_disk: float = 0.0, hidden_bytes: int | None = None) -> None:
    """Carry out a recipe, keeping whole scores up to a share of the free disk, and hidden states in so much memory."""
    from rich.console import Console

    from surgeon.model import budgets
    from surgeon.plan import needs
    from surgeon.progress import Progress

    needs.SHARE_OF_DISK = share_of_disk
    if hidden_bytes is not None:
        budgets.HIDDEN_BYTES = hidden_bytes
    # Pages and cards are rank 0's alone, and drawing them takes most of such a small run's time.
    surgeon.run.write_page = lambda report, out: []
    surgeon.run.model_card = surgeon.run.write_card = lambda *args: None
    sent = _counted()
    surgeon.apply(recipe, output=output, progress=Progress(Console(stderr=True)) if group.started()[0] == 0 else None)
    sums = sum(size for size, dtype in sent if dtype == torch.float32)  # not those of a forward score, and not losses
    print(f"sent: {sums} of {sum(size for size, _ in sent)}", file=sys.stderr)


def _counted() -> list[tuple[int, torch.dtype]]:
    """Note the bytes of results that this rank sends from now on."""
    sending, sent = team.Sending.__init__, []

    def counted(self: Any, value: Any, to: int) -> None:
        sending(self, value, to)
        if group.rank() > 0:
            sent.extend((part.numel() * part.element_size(), part.dtype) for part in self._parts)

    team.Sending.__init__ = counted
    return sent


def apply_and_die(recipe: str, output: str, hidden_bytes: int, share_of_disk: float, victim: int, moment: int) -> None:
    """Carry out a recipe; the rank `victim` is killed when it has noted for the `moment`th time how far it came."""
    from surgeon.scores.score_pass import Scratch

    note, left = Scratch.note, [moment]

    def counted(self: Any, *rest: Any) -> None:
        note(self, *rest)
        left[0] -= 1
        if left[0] == 0 and group.rank() == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    Scratch.note = counted
    apply(recipe, output, share_of_disk, hidden_bytes)


def apply_and_tell(recipe: str, output: str, hidden_bytes: int, share_of_disk: float) -> None:
    """Carry out a recipe; each rank says on stderr where its sweep began."""
    from surgeon.scores.score_pass import ScorePass

    start = ScorePass.start

    def told(self: Any, scratch: Any) -> Any:
        found = start(self, scratch)
        print(f"began: {found.forward} {found.left}", file=sys.stderr)
        return found

    ScorePass.start = told
    apply(recipe, output, share_of_disk, hidden_bytes)


def apply_and_stop(recipe: str, output: str, victim: int) -> None:
    """Carry out a recipe; the rank `victim` stands still in the middle of the sweep."""
    from surgeon.model.layer_stack import Stack

    layer, left = Stack.layer, [9]

    def counted(self: Any, *rest: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and group.rank() == victim:
            os.kill(os.getpid(), signal.SIGSTOP)
        return layer(self, *rest)

    Stack.layer = counted
    apply(recipe, output)


def apply_unseen(recipe: str, output: str, model: str) -> None:
    """Carry out a recipe; only rank 0 can open what lies in the folder `model`."""
    from surgeon.checkpoint.checkpoint import Checkpoint
    from surgeon.errors import CheckpointError

    real = Checkpoint.open

    def opened(source: Any) -> Any:
        if group.rank() > 0 and str(source).startswith(model):
            raise CheckpointError(f"{source}: no such file or folder")
        return real(source)

    Checkpoint.open = opened
    apply(recipe, output)


def verify(checkpoint: str, base: str, texts: dict[str, str], told: str) -> None:
    """Measure a checkpoint beside its base; the last rank writes down what it was told in the end."""
    from surgeon.api import verify_checkpoint
    from surgeon.recipe.schema import VerifySpec
    from surgeon.text.corpora import Corpus, FileLocation

    corpus = Corpus("c", {language: FileLocation(Path(path)) for language, path in texts.items()})
    spec = VerifySpec(tokens=50, window=16, batch_size=2)
    result = verify_checkpoint(checkpoint, base=base, corpus=corpus, spec=spec)
    number, count = group.started()
    if number == count - 1:
        Path(told).write_text(repr(result))


def meet_without(*victims: int) -> None:
    """Meet the others; the victims are killed before they could."""
    if group.started()[0] in victims:
        os.kill(os.getpid(), signal.SIGKILL)
    with group.joined("cpu"):
        pass
