"""One pass of a score on text through a model: what it keeps meanwhile and where, and what becomes of its scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.anatomy.slots import Slot
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import InputError
from surgeon.model import budgets
from surgeon.model.embedding_and_head import hidden_layout
from surgeon.model.hidden_states import States, bytes_needed
from surgeon.model.layer_stack import Stack
from surgeon.model.repeatable import repeatable
from surgeon.progress import Progress
from surgeon.scores import backward_pass, forward_pass
from surgeon.scores.backward_pass import BEHIND, Kept, Progressed, own_batches
from surgeon.scores.base import BackwardScore, ForwardScore, SampledScore
from surgeon.scores.pass_scratch import Scratch, scratch_folder
from surgeon.scores.running_statistics import RunningStatistics
from surgeon.scores.sample import Sample, Scores, make_sample, units
from surgeon.team import ALONE, Team

Arrays = Mapping[str, Any]  # float32: numpy's, or torch's on a device
Flush = Callable[[], None]


@dataclass(frozen=True, eq=False)
class ScorePass:
    """A score to be computed of some tensors on sequences of token ids per language.

    `begun` special tokens at the beginning of each sequence are not predicted. Where others of a `team` help, each
    process keeps the hidden states of its own batches only, and the scores come to one of them. `in_one_go` holds a
    batch's activations in all layers, and so needs no second pass forward; all that is scored is then one unit, -1.
    `rows` of a batch are run at a time, if not all of them.
    """

    stack: Stack
    sequences: Mapping[str, Sequence[Sequence[int]]]
    tensors: Sequence[TensorInfo]
    score: SampledScore
    progress: Progress
    begun: int = 0
    team: Team = ALONE
    in_one_go: bool = False
    rows: int | None = None

    @cached_property
    def sample(self) -> Sample:
        """The sequences in batches."""
        return make_sample(self.sequences, self.score.batch_size, self.begun, self.rows)

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """The places of the tensors in the model.

        Raises:
            InputError: one has none.
        """
        known = self.stack.loaded.parameters
        absent = [info.name for info in self.tensors if info.name not in known]
        if absent:
            raise InputError(
                f"tensor '{absent[0]}' is not a parameter of {type(self.stack.loaded.model).__name__} as transformers "
                f"builds it ({len(absent)} such tensors): exclude it, or use a region from a file"
            )
        return {info.name: known[info.name] for info in self.tensors}

    @contextmanager
    def scratch(self, key: str) -> Iterator[Scratch]:
        """Yield the pass's scratch folder, which a later process finds again only if hidden states go there."""
        numbers = [number for _, number, _ in self._own]
        part = "" if len(numbers) == len(self.sample.all()) else f"-{sha256(repr(numbers).encode())[:16]}"
        with scratch_folder(key + part, resumes=self._home is None) as scratch:
            yield scratch

    def start(self, scratch: Scratch) -> Progressed:
        """Return where an earlier process left off; of several, where all of them can go on."""
        own, layers = scratch.progress(), len(self.stack.layers)
        found = [item for item in self.team.everyones(own if self._own else None) if item is not None]
        left = [layers if item.left is None else item.left for item in found]
        if max(left) - min(left) > BEHIND:  # one has lost what it had, and others have dropped what it would need
            scratch.forget()
            return Progressed()
        return own if all(item.left is None for item in found) else Progressed(own.forward, max(left))

    def run(
        self, scratch: Scratch, start: Progressed, flush: Flush = lambda: None
    ) -> Iterator[tuple[int, str, Arrays]]:
        """Yield (layer, language, scores by name on disk), all languages of a layer in a row.

        Scores are numpy's if the model runs on the CPU, else torch's on its device.

        `flush` is called before it is noted how far the pass came: what was made of the scores must be on disk then.
        """
        device = self.stack.loaded.device
        with repeatable(device, self.score.sequence_length):
            for layer, language, scores in self._beginning(scratch, start, flush):
                of = {name: tensor.numpy() if device == "cpu" else tensor for name, tensor in scores.items()}
                yield layer, language, of

    def _beginning(self, scratch: Scratch, start: Progressed, flush: Flush) -> Iterator[tuple[int, str, Scores]]:
        """Begin, and where the device's memory turns out to be short begin anew with less at a time.

        The most is needed before the first scores come, so that later on nothing needs to be begun anew.
        """
        made = self._engine(scratch, start, flush)
        try:
            first = next(made, None)
        except torch.OutOfMemoryError:
            less = self._with_less()
            if less is None:
                raise
        else:
            if first is not None:
                yield first
                yield from made
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        yield from less._beginning(scratch, start, flush)

    def _with_less(self) -> ScorePass | None:
        """Return the same with less at a time; None if there is nothing less, or others wait for this process."""
        rows, device = self.rows or self.score.batch_size, self.stack.loaded.device
        if len(self._own) < len(self.sample.all()) or (rows == 1 and not self.in_one_go):
            return None
        if self.in_one_go:
            self.progress.note(f"out of memory on {device}: layer by layer, instead of all layers at once")
            return replace(self, in_one_go=False)
        self.progress.note(f"out of memory on {device}: {rows // 2} of a batch's {self.score.batch_size} at a time")
        return replace(self, rows=rows // 2)

    def _engine(self, scratch: Scratch, start: Progressed, flush: Flush) -> Iterator[tuple[int, str, Scores]]:
        kept = self._kept(scratch)

        def note(progressed: Progressed) -> None:
            if scratch.resumes:
                flush()
                scratch.note(progressed, kept)

        stack, sample, slots, score, team = self.stack, self.sample, self.slots, self.score, self.team
        kind = backward_pass if score.backward else forward_pass
        work = len(self._own) if self.in_one_go else kind.work(stack, sample, slots, team)
        with self.progress.task(f"score {', '.join(self.sequences)}", work) as advance:
            if self.in_one_go:
                backward = cast(BackwardScore, score)
                for language, scores in backward_pass.in_one_go(stack, sample, slots, backward, advance, team):
                    yield -1, language, scores
            elif score.backward:
                backward = cast(BackwardScore, score)
                yield from backward_pass.run(stack, sample, slots, backward, kept, advance, team, start, note)
            else:
                forward, hidden = cast(ForwardScore, score), kept.hidden
                yield from forward_pass.run(stack, sample, slots, forward, self._statistics, hidden, advance, team)

    def _statistics(self, slots: Mapping[str, Slot]) -> RunningStatistics:
        checkpoint = self.stack.loaded.checkpoint
        places = anatomy_of(checkpoint).places
        return RunningStatistics(self.score.kind, slots, {name: places[name] for name in slots}, checkpoint.config)

    def _kept(self, scratch: Scratch) -> Kept:
        shapes, dtype = self._hidden
        folder, home = scratch.folder if self._home is None else None, self._home or "cpu"
        device = self.stack.loaded.device
        return Kept(*(States(shapes, dtype, folder, label, home, device) for label in ("hidden", "gradient")))

    @property
    def shapes(self) -> dict[int, dict[str, tuple[int, ...]]]:
        """The shapes of what is scored in each layer; -1 is what is outside."""
        names = {-1: self.slots} if self.in_one_go else units(self.stack, self.slots)
        return {
            layer: {info.name: info.shape for info in self.tensors if info.name in inside}
            for layer, inside in names.items()
        }

    @cached_property
    def _own(self) -> list[tuple[str, int, torch.Tensor]]:
        """The batches of this process."""
        return own_batches(self.sample, self.team)

    @cached_property
    def _hidden(self) -> tuple[list[tuple[int, ...]], torch.dtype]:
        """The shape of each batch's hidden state, of none where it is another process's, and their dtype."""
        shapes, dtype = hidden_layout(self.stack, self.sample.all())
        own = {number for _, number, _ in self._own}
        return [shape if number in own else (0,) for number, shape in enumerate(shapes)], dtype

    @cached_property
    def _home(self) -> str | None:
        """Where hidden states stay between layers; None stands for scratch files."""
        device = self.stack.loaded.device
        if self.in_one_go:
            return device
        shapes, dtype = self._hidden
        rows = len(self.stack.layers) + 3 if self.score.backward else 2
        return budgets.home_of_hidden(bytes_needed(shapes, rows, dtype), device, self.stack.size)
