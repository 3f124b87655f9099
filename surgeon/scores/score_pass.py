"""One pass of a score on text through a model: what it keeps meanwhile and where, and what becomes of its scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from surgeon import ranks
from surgeon.anatomy.anatomy import anatomy_of
from surgeon.anatomy.slots import Slot
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import InputError
from surgeon.model import budgets
from surgeon.model.embedding_and_head import hidden_layout
from surgeon.model.hidden_states import States, bytes_needed
from surgeon.model.layer_stack import Stack
from surgeon.progress import Progress
from surgeon.scores import backward_pass, forward_pass
from surgeon.scores.backward_pass import Kept, Progressed
from surgeon.scores.base import BackwardScore, ForwardScore, SampledScore
from surgeon.scores.pass_scratch import Scratch, scratch_folder
from surgeon.scores.running_statistics import RunningStatistics
from surgeon.scores.sample import Sample, last_ranks, make_sample, part_of, units
from surgeon.scores.spread import Behind, LateStates, Made, Spread, agreed_start, exchange

Arrays = Mapping[str, NDArray[np.float32]]
Flush = Callable[[], None]


@dataclass(frozen=True, eq=False)
class ScorePass:
    """A score to be computed of some tensors on sequences of token ids per language.

    `selecting` are the ranks that take the scores, a layer each in turns; `begun` special tokens at the beginning of
    each sequence are not predicted.
    """

    stack: Stack
    sequences: Mapping[str, Sequence[Sequence[int]]]
    tensors: Sequence[TensorInfo]
    score: SampledScore
    progress: Progress
    selecting: Sequence[int] = (0,)
    begun: int = 0

    @cached_property
    def sample(self) -> Sample:
        """The sequences in batches."""
        return make_sample(self.sequences, self.score.batch_size, self.begun)

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
        own = key if ranks.world() == 1 else f"{key}-{ranks.rank()}-of-{ranks.world()}"
        with scratch_folder(own, resumes=self._goes_to_disk) as scratch:
            yield scratch

    def start(self, scratch: Scratch) -> Progressed:
        """Return where an earlier process left off; of several ranks, where all of them can go on."""
        if ranks.world() == 1 or not self._goes_to_disk:
            return scratch.progress()
        # A rank without batches has nothing that it would have to go on from.
        own = scratch.progress() if self._own.all() else Progressed(len(self.stack.layers), 0)
        agreed = agreed_start(own, scratch.done(), list(self._spread.layers))
        if agreed is None:
            scratch.forget()
        return agreed or Progressed()

    def run(
        self, scratch: Scratch, start: Progressed, flush: Flush = lambda: None
    ) -> Iterator[tuple[int, str, Arrays]]:
        """Yield (layer, language, scores by name on disk), all languages of a layer in a row.

        `flush` is called before it is noted how far the pass came: what was made of the scores must be on disk then.
        On one of several ranks these are the layers that it selects in, see `done`.
        """
        made = self._engine(scratch, start, flush)
        if ranks.world() > 1:
            made = exchange(self._spread, made, self._left(self._spread.own(), start))
        for layer, language, scores in made:
            yield layer, language, {name: tensor.numpy() for name, tensor in scores.items()}

    def done(self, scratch: Scratch, layer: int) -> None:
        """Note that what becomes of a layer's scores is on disk, where several ranks have to know."""
        if ranks.world() > 1 and scratch.resumes:
            scratch.note_done(layer)
            ranks.announce(f"{scratch.key}/{layer}")

    def _engine(self, scratch: Scratch, start: Progressed, flush: Flush) -> Iterator[Made]:
        kept = self._kept(scratch, start)

        def note(progressed: Progressed) -> None:
            if scratch.resumes:
                if ranks.world() == 1:
                    flush()
                scratch.note(progressed, kept)

        stack, sample, slots, score = self.stack, self._own, self.slots, self.score
        pass_through = backward_pass if score.backward else forward_pass
        total = pass_through.work(stack, sample, slots)
        with self.progress.task(f"score {', '.join(self.sequences)}", total) as advance:
            if score.backward:
                found = backward_pass.run(stack, sample, slots, cast(BackwardScore, score), kept, advance, start, note)
            else:
                found = forward_pass.run(stack, sample, slots, kept.hidden, advance, self._watch)
            yield from found

    def _watch(self, slots: Mapping[str, Slot]) -> forward_pass.Watching:
        score, checkpoint = cast(ForwardScore, self.score), self.stack.loaded.checkpoint
        found = anatomy_of(checkpoint).places
        return forward_pass.Watching(
            score, RunningStatistics(score.kind, slots, {name: found[name] for name in slots}, checkpoint.config)
        )

    def _kept(self, scratch: Scratch, start: Progressed) -> Kept:
        shapes, dtype = hidden_layout(self.stack, self._own.all())
        folder = scratch.folder if self._goes_to_disk else None
        if ranks.world() == 1 or folder is None:
            return Kept(*(States(shapes, dtype, folder, label) for label in ("hidden", "gradient")))
        done = len(self.stack.layers) if start.left is None else start.left
        behind = Behind(list(self._spread.layers), done, lambda layer: ranks.announced(f"{scratch.key}/{layer}"))
        return Kept(*(LateStates(shapes, dtype, folder, label, behind) for label in ("hidden", "gradient")))

    def _left(self, layers: Sequence[int], start: Progressed) -> list[int]:
        return [layer for layer in layers if start.left is None or layer < start.left]

    @property
    def own_layers(self) -> list[int]:
        """The layers that this rank selects in, or what is outside, -1: of one rank all that are scored."""
        return list(units(self.stack, self.slots)) if ranks.world() == 1 else self._spread.own()

    @property
    def shapes(self) -> dict[int, dict[str, tuple[int, ...]]]:
        """The shapes of what is scored in each layer."""
        names = units(self.stack, self.slots)
        return {
            layer: {info.name: info.shape for info in self.tensors if info.name in inside}
            for layer, inside in names.items()
        }

    @cached_property
    def _own(self) -> Sample:
        """The batches of this rank."""
        return self.sample if ranks.world() == 1 else part_of(self.sample, ranks.rank(), ranks.world())

    @cached_property
    def _spread(self) -> Spread:
        """What each rank does. Gradients begin at the last layer, activations at the first; what is outside is last."""
        shapes = {info.name: info.shape for info in self.tensors}
        found = units(self.stack, self.slots)
        order = sorted(found, key=lambda layer: (layer < 0, -layer if self.score.backward else layer))
        layers = {layer: {name: shapes[name] for name in found[layer]} for layer in order}
        return Spread(layers, list(self.sequences), last_ranks(self.sample, ranks.world()), self.selecting)

    @cached_property
    def _goes_to_disk(self) -> bool:
        shapes, dtype = hidden_layout(self.stack, self.sample.all())
        rows = len(self.stack.layers) + 3 if self.score.backward else 2
        return bytes_needed(shapes, rows, dtype) > budgets.HIDDEN_BYTES * ranks.world()
