"""One pass of a score on text through a model: what it keeps meanwhile and where, and what becomes of its scores.

What a pass over a large model keeps lies in the cache, in a scratch folder under a name made from all that the pass
depends on, so that a killed run goes on. Such a folder is used only where the hidden states are too large for memory;
`progress.json` in it is written after what it speaks of has reached the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from surgeon.anatomy.slots import Slot
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.plain_json import read_object
from surgeon.checkpoint.storage import TensorInfo
from surgeon.checkpoint.store import PROGRESS, named_scratch, own_scratch
from surgeon.errors import InputError
from surgeon.inside import replacing
from surgeon.model import budgets
from surgeon.model.arithmetic import Precision, repeatable
from surgeon.model.hidden_states import States, bytes_needed, hidden_layout
from surgeon.model.layer_stack import Stack
from surgeon.model.workplace import Workplace
from surgeon.progress import Progress
from surgeon.scores import backward_pass, forward_pass
from surgeon.scores.backward_pass import BEHIND
from surgeon.scores.base import SampledScore
from surgeon.scores.passes import Kept, Pass, Progressed, Sample, Scores, make_sample
from surgeon.team import ALONE, Team

Arrays = Mapping[str, Any]  # float32: numpy's, or torch's on a device
Flush = Callable[[], None]


@dataclass(frozen=True)
class Scratch:
    """A folder of one pass, locked for this process. `resumes` is False for one that nobody will find again."""

    folder: Path
    resumes: bool

    def progress(self) -> Progressed:
        """Return how far an earlier process came here."""
        try:
            noted = read_object(self.folder / PROGRESS)
            return Progressed(int(noted["forward"]), None if noted["left"] is None else int(noted["left"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Progressed()

    def note(self, progressed: Progressed, kept: Kept) -> None:
        """Note how far the pass came, once the states that it needs to go on are on the disk."""
        row = progressed.forward if progressed.left is None else progressed.left
        kept.hidden.flush(row)
        kept.gradients.flush(row)
        with replacing(self.folder / PROGRESS) as staged:
            staged.write_text(json.dumps(asdict(progressed)), encoding="utf-8")


@contextmanager
def scratch_folder(key: str, resumes: bool) -> Iterator[Scratch]:
    """Yield a pass's scratch folder, deleted when the block ends well; one that another process uses is not shared."""
    with ExitStack() as stack:
        folder = stack.enter_context(named_scratch(key)) if resumes else None
        yield Scratch(folder or stack.enter_context(own_scratch()), folder is not None)


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
    def _pass(self) -> Pass:
        return Pass(self.stack, self._slots(), self.score, self.sample, self.team)

    def _slots(self) -> dict[str, Slot]:
        """Return where the tensors are in the model.

        Raises:
            InputError: one is nowhere.
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
        numbers = [number for _, number, _ in self._pass.own_batches]
        part = "" if len(numbers) == len(self.sample.all()) else f"-{sha256(repr(numbers).encode())[:16]}"
        with scratch_folder(key + part, resumes=self._home is None) as scratch:
            yield scratch

    def start(self, scratch: Scratch) -> Progressed:
        """Return where an earlier process left off; of several, where all of them can go on."""
        own, layers = scratch.progress(), len(self.stack.layers)
        every = [item for item in self.team.everyones(own if self._pass.own_batches else None) if item is not None]
        left = [layers if item.left is None else item.left for item in every]
        if max(left) - min(left) > BEHIND:  # one has lost what it had, and others have dropped what it would need
            (scratch.folder / PROGRESS).unlink(missing_ok=True)
            return Progressed()
        return own if all(item.left is None for item in every) else Progressed(own.forward, max(left))

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
        scores = self._engine(scratch, start, flush)
        try:
            first = next(scores, None)
        except torch.OutOfMemoryError:
            less = self._with_less()
            if less is None:
                raise
        else:
            if first is not None:
                yield first
                yield from scores
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        yield from less._beginning(scratch, start, flush)

    def _with_less(self) -> ScorePass | None:
        """Return the same with less at a time; None if there is nothing less, or others wait for this process."""
        rows, device = self.rows or self.score.batch_size, self.stack.loaded.device
        if len(self._pass.own_batches) < len(self.sample.all()) or (rows == 1 and not self.in_one_go):
            return None
        if self.in_one_go:
            self.progress.note(f"out of memory on {device}: layer by layer, instead of all layers at once")
            return replace(self, in_one_go=False)
        self.progress.note(f"out of memory on {device}: {rows // 2} of a batch's {self.score.batch_size} at a time")
        return replace(self, rows=rows // 2)

    def _engine(self, scratch: Scratch, start: Progressed, flush: Flush) -> Iterator[tuple[int, str, Scores]]:
        kept, of = self._kept(scratch), self._pass

        def note(progressed: Progressed) -> None:
            if scratch.resumes:
                flush()
                scratch.note(progressed, kept)

        kind = backward_pass if self.score.backward else forward_pass
        work = len(of.own_batches) if self.in_one_go else kind.work(of)
        with self.progress.task(f"score {', '.join(self.sequences)}", work) as advance:
            if self.in_one_go:
                for language, scores in backward_pass.in_one_go(of, advance):
                    yield -1, language, scores
            elif self.score.backward:
                yield from backward_pass.run(of, kept, advance, start, note)
            else:
                yield from forward_pass.run(of, kept.hidden, advance)

    def _kept(self, scratch: Scratch) -> Kept:
        shapes, dtype = self._hidden
        folder, home = scratch.folder if self._home is None else None, self._home or "cpu"
        device = self.stack.loaded.device
        return Kept(*(States(shapes, dtype, folder, label, home, device) for label in ("hidden", "gradient")))

    @property
    def shapes(self) -> dict[int, dict[str, tuple[int, ...]]]:
        """The shapes of what is scored in each layer; -1 is what is outside."""
        names = {-1: self._pass.slots} if self.in_one_go else self._pass.by_layer
        return {
            layer: {info.name: info.shape for info in self.tensors if info.name in inside}
            for layer, inside in names.items()
        }

    @cached_property
    def _hidden(self) -> tuple[list[tuple[int, ...]], torch.dtype]:
        """The shape of each batch's hidden state, of none where it is another process's, and their dtype."""
        shapes, dtype = hidden_layout(self.stack, self.sample.all())
        own = {number for _, number, _ in self._pass.own_batches}
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


@dataclass(frozen=True)
class SharedScorePass:
    """A pass as all processes of a team are told of it, of which each does some pieces.

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
