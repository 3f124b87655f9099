"""All measurements of all models in one pass through the layers: outputs come by, observers say what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surgeon.measure.base import UNCOUNTED, Batch, Measurement, Outputs, Pieces, Seen
from surgeon.measure.perplexity import EvaluationText, Perplexity, as_measures, window_pieces
from surgeon.model.device import with_less_at_a_time
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack
from surgeon.model.results import Figures, Measure
from surgeon.model.variant_pass import Take, outputs_of, run_models, work
from surgeon.progress import Progress
from surgeon.team import ALONE, Team

_Sums = dict[str, NDArray[np.float64]]  # by the name of a value, those of a batch's pieces or of all


@dataclass(frozen=True)
class Look:
    """One measurement: its pieces, and the models, by name, that it is made of."""

    measurement: Measurement
    pieces: Pieces
    models: frozenset[str]


@dataclass(frozen=True)
class _Watcher:
    """A look at one batch of the pass; `ids` are the numbers of its pieces, `slots` say which of them a token is of."""

    look: int
    batch: Batch
    ids: NDArray[np.int64]
    slots: NDArray[np.int64]


@dataclass
class _Pass:
    """The batches of a pass, those who look at each, and what they noted: by model and watcher, a batch's sums.

    Where a measurement compares, the base is the first model; it may be another one, that stands `beside`. Batches are
    run in `parts`, some rows at a time, and noted as if they were not.
    """

    looks: Sequence[Look]
    names: Sequence[str]
    inputs: Sequence[torch.Tensor]
    watchers: Sequence[Sequence[_Watcher]]
    beside: Stack | None = None
    notes: list[dict[tuple[int, int], _Sums]] = field(default_factory=list)
    parts: Sequence[tuple[int, int]] = ()  # a batch, and its first row
    base: tuple[tuple[int, slice, slice] | None, Outputs | None] = (None, None)  # a chunk, and what it says of it

    def begin(self, rows: int) -> list[torch.Tensor]:
        """Note nothing yet, and return the parts to run, of so many rows at most."""
        self.notes = [{} for _ in self.inputs]
        self.parts = [(batch, first) for batch, ids in enumerate(self.inputs) for first in range(0, len(ids), rows)]
        return [self.inputs[batch][first : first + rows] for batch, first in self.parts]

    def uses(self, model: int, part: int) -> bool:
        """True if a model is run on a part."""
        looks = [self.looks[watcher.look] for watcher in self.watchers[self.parts[part][0]]]
        return any(self.names[model] in look.models or (model == 0 and look.measurement.compares) for look in looks)

    def wanted(self, part: int, rows: slice, positions: slice) -> bool:
        """True if anybody counts an output of a chunk."""
        batch, rows = self._chunk(part, rows)
        return any(bool((w.batch.labels[rows, positions] != UNCOUNTED).any()) for w in self.watchers[batch])

    def take(self, model: int, part: int, rows: slice, positions: slice, logits: torch.Tensor) -> None:
        """Have everybody who looks at a chunk note what a model's outputs are worth; the base's come first."""
        batch, rows = self._chunk(part, rows)
        outputs, chunk = Outputs(logits), (batch, rows, positions)
        if model == 0 and any(self.looks[watcher.look].measurement.compares for watcher in self.watchers[batch]):
            self.base = chunk, outputs
        for number, watcher in enumerate(self.watchers[batch]):
            look = self.looks[watcher.look]
            if self.names[model] not in look.models:
                continue
            base = self.base[1] if look.measurement.compares and self.base[0] == chunk else None
            labels = watcher.batch.labels[rows, positions].to(logits.device)
            sums = self.notes[batch].setdefault((model, number), {})
            _note(sums, look.measurement, Seen(outputs, labels, base), watcher, rows, positions)

    def _chunk(self, part: int, rows: slice) -> tuple[int, slice]:
        """Return the batch that a part is of, and where the part's rows are there."""
        batch, first = self.parts[part]
        return batch, slice(first + rows.start, first + rows.stop)


def measure(
    stack: Stack,
    variants: Sequence[Variant],
    looks: Sequence[Look],
    progress: Progress,
    team: Team = ALONE,
    beside: Stack | None = None,
) -> dict[str, dict[str, Figures]]:
    """Measure models; returns their figures by the names of variant and kind.

    The first variant is the base where a measurement compares; or the base is another model, which stands `beside`, is
    called `base` and sees the same tokens. Each of a team runs some of the batches; where what they found does not
    come, nothing is returned.
    """
    names = [*([] if beside is None else ["base"]), *(variant.name for variant in variants)]
    whole = _pass(looks, names)

    def noted(share: Sequence[int]) -> dict[int, dict[tuple[int, int], _Sums]]:
        part = _Pass(looks, names, [whole.inputs[i] for i in share], [whole.watchers[i] for i in share], beside)
        _run(stack, variants, part, progress, may_halve=len(share) == len(whole.inputs))
        return dict(zip(share, part.notes, strict=True))

    shares = list(team.map(noted, team.divided(range(len(whole.inputs)))))
    if not shares:
        return {}
    notes = {number: sums for share in shares for number, sums in share.items()}
    own = []  # what each look finds by work of its own on the models, by variant
    for look in looks:
        models = [variant for variant in variants if variant.name in look.models]
        own.append(look.measurement.work(stack, models, look.pieces, progress))
    return _figures(whole, [notes[number] for number in sorted(notes)], own)


def _run(stack: Stack, variants: Sequence[Variant], part: _Pass, progress: Progress, may_halve: bool) -> None:
    """Fill the notes of a pass; where the device's memory is short, anew with half as many rows at a time.

    It is not begun anew, unless it `may_halve`: others may wait for this process.
    """
    told = ", ".join(dict.fromkeys(look.measurement.kind for look in part.looks))
    label = f"{told} of {len(part.names)} models" if len(part.names) > 1 else f"{told} of {part.names[0]}"
    first = len(part.names) - len(variants)  # the number of the first variant among all models

    def uses(variant: int, batch: int) -> bool:
        return part.uses(first + variant, batch)

    def noted(rows: int) -> None:
        inputs = part.begin(rows)
        cost = work(stack, variants, len(inputs), uses)
        cost += len(inputs) * len(part.beside.layers) if part.beside is not None else 0
        with progress.task(label, cost) as advance, _taken(part, inputs, advance) as take:
            run_models(stack, variants, inputs, take, wanted=part.wanted, uses=uses, advance=advance)

    rows = max((len(ids) for ids in part.inputs), default=0)
    with_less_at_a_time(rows, noted, stack.loaded.device, progress, may_halve)


@contextmanager
def _taken(part: _Pass, inputs: Sequence[torch.Tensor], advance: Callable[[int], None]) -> Iterator[Take]:
    """Give what takes the outputs of variants; of a base beside them it has the same chunk's taken first."""
    if part.beside is None:
        yield part.take
        return
    with outputs_of(part.beside, inputs, advance) as outputs:

        def take(variant: int, batch: int, rows: slice, positions: slice, logits: torch.Tensor) -> None:
            if variant == 0:
                part.take(0, batch, rows, positions, outputs(batch, rows, positions))
            part.take(1 + variant, batch, rows, positions, logits)

        yield take


def _pass(looks: Sequence[Look], names: Sequence[str]) -> _Pass:
    """Put together the batches of all looks, those with the same inputs once."""
    order: dict[int, list[_Watcher]] = {}
    inputs: dict[int, torch.Tensor] = {}
    for number, look in enumerate(looks):
        for batch in look.pieces.batches:
            inputs[id(batch.inputs)] = batch.inputs
            ids = np.unique(batch.numbers[batch.numbers >= 0])
            watcher = _Watcher(number, batch, ids, np.searchsorted(ids, batch.numbers))
            order.setdefault(id(batch.inputs), []).append(watcher)
    return _Pass(looks, names, list(inputs.values()), [order[key] for key in inputs])


def _note(sums: _Sums, measurement: Measurement, seen: Seen, watcher: _Watcher, rows: slice, positions: slice) -> None:
    """Add up a chunk's values by piece, in float64 and in the order of the tokens."""
    values = measurement.values(seen)
    counted = watcher.batch.numbers[rows, positions] >= 0
    at = watcher.slots[rows, positions][counted]
    stacked = torch.stack(list(values.values())).cpu().double().numpy()
    for name, of_tokens in zip(values, stacked, strict=True):
        added = np.bincount(at, of_tokens[counted], minlength=watcher.ids.size).astype(np.float64)
        sums[name] = sums[name] + added if name in sums else added


def _figures(
    whole: _Pass, notes: Sequence[Mapping[tuple[int, int], _Sums]], own: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Figures]]:
    result: dict[str, dict[str, Figures]] = {name: {} for name in whole.names}
    for number, look in enumerate(whole.looks):
        for model, name in enumerate(whole.names):
            if name not in look.models:
                continue
            sums: _Sums = {}
            for watchers, of_batch in zip(whole.watchers, notes, strict=True):
                for turn, watcher in enumerate(watchers):
                    if watcher.look == number:
                        for value, added in of_batch.get((model, turn), {}).items():
                            totals = sums.setdefault(value, np.zeros(len(look.pieces.pieces)))
                            totals[watcher.ids] += added
            result[name][look.measurement.kind] = look.measurement.figures_with(
                look.pieces, sums, own[number].get(name)
            )
    return result


def measure_loaded(model: Any, texts: Mapping[str, EvaluationText], batch_size: int) -> dict[str, Measure]:
    """Measure perplexity of a transformers model as it is in memory, on its own device and in its own arithmetic."""
    look = Look(Perplexity(), window_pieces(texts, batch_size), frozenset(["model"]))
    whole = _pass([look], ["model"])
    device = model.get_input_embeddings().weight.device
    notes: list[dict[tuple[int, int], _Sums]] = []
    for inputs, watchers in zip(whole.inputs, whole.watchers, strict=True):
        logits = model(input_ids=inputs.to(device), use_cache=False).logits
        notes.append({(0, 0): {}})
        seen = Seen(Outputs(logits), watchers[0].batch.labels.to(logits.device))
        _note(notes[-1][0, 0], look.measurement, seen, watchers[0], slice(None), slice(None))
    sizes = {language: text.bytes for language, text in texts.items()}
    return as_measures(_figures(whole, notes, [{}])["model"]["perplexity"], sizes)
