"""One sweep of a score on text through a model: what it keeps meanwhile and where, and what becomes of its scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import InputError
from surgeon.model import budgets
from surgeon.model.batches import hidden_layout
from surgeon.model.slots import Slot
from surgeon.model.stack import Stack
from surgeon.model.states import States, bytes_needed
from surgeon.plan.regions import RegionPlan
from surgeon.progress import Progress
from surgeon.region.region import Region
from surgeon.scores import grad_param, wanda
from surgeon.scores.grad_param import Kept, Progressed
from surgeon.scores.sample import Sample, make_sample, units
from surgeon.scores.scratch import Scratch, scratch_folder
from surgeon.scores.selection import Draw, StreamedSelection
from surgeon.scores.settings import ScoreSettings

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A score to be computed of some tensors on sequences of token ids per language."""

    stack: Stack
    sequences: Mapping[str, Sequence[Sequence[int]]]
    tensors: Sequence[TensorInfo]
    settings: ScoreSettings
    progress: Progress

    @cached_property
    def sample(self) -> Sample:
        """The sequences in batches."""
        return make_sample(self.sequences, self.settings.batch_size)

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
        """Yield the sweep's scratch folder, which a later process finds again only if hidden states go there."""
        with scratch_folder(key, resumes=self._goes_to_disk) as scratch:
            yield scratch

    def run(
        self, scratch: Scratch, start: Progressed, flush: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, str, Arrays]]:
        """Yield (layer, language, scores by name on disk), all languages of a layer in a row.

        `flush` is called before it is noted how far the sweep came: what was made of the scores must be on disk then.
        """
        folder = scratch.folder if self._goes_to_disk else None
        shapes, dtype = self._layout
        kept = Kept(*(States(shapes, dtype, folder, label) for label in ("hidden", "gradient")))

        def note(progressed: Progressed) -> None:
            if scratch.resumes:
                flush()
                scratch.note(progressed, kept)

        stack, sample, slots, reduction = self.stack, self.sample, self.slots, self.settings.reduction
        total = wanda.work(stack, sample, slots) if reduction is None else grad_param.work(stack, sample, slots)
        with self.progress.task(f"score {', '.join(self.sequences)}", total) as advance:
            for layer, language, scores in (
                wanda.sweep(stack, sample, slots, kept.hidden, advance)
                if reduction is None
                else grad_param.sweep(stack, sample, slots, reduction, kept, advance, start, note)
            ):
                yield layer, language, {name: tensor.numpy() for name, tensor in scores.items()}

    def select(
        self, regions: Sequence[RegionPlan], controls: Sequence[tuple[RegionPlan, Draw]], key: str
    ) -> dict[str, Region]:
        """Compute the scores and keep only the regions that are selected by them, and their controls."""
        streamed = StreamedSelection(regions, list(self.sequences), controls)
        of_layer = {
            number: [info for info in self.tensors if info.name in names]
            for number, names in units(self.stack, self.slots).items()
        }
        with self.scratch(key) as scratch:
            # A cut over all tensors holds its candidates in memory only, so that such a sweep begins anew.
            start = Progressed() if streamed.is_global else scratch.progress()
            for layer in of_layer:
                for name in streamed.names if start.left is not None and layer >= start.left else ():
                    streamed.restore(name, Region.load(_part(scratch, layer, name)))
            for layer in streamed.take(self.run(scratch, start)):
                for name in streamed.names if scratch.resumes else ():
                    streamed.found(of_layer[layer], name).save(_part(scratch, layer, name))
            return streamed.finish()

    @cached_property
    def _layout(self) -> tuple[list[tuple[int, ...]], torch.dtype]:
        return hidden_layout(self.stack, self.sample.all())

    @property
    def _goes_to_disk(self) -> bool:
        rows = 2 if self.settings.reduction is None else len(self.stack.layers) + 3
        return bytes_needed(self._layout[0], rows, self._layout[1]) > budgets.HIDDEN_BYTES


def _part(scratch: Scratch, layer: int, region: str) -> Path:
    return scratch.folder / f"{layer}-{region}.region.safetensors"
