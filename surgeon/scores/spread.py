"""A pass on several ranks: each takes some of the batches through all layers, and selects in some of the layers.

A language's sums pass from rank to rank in the order of its batches (`grad_param._Sums`), and the rank with the last
one hands the scores to the rank that selects in that layer. While a thread runs the model, the main thread takes the
scores of its layers as they come. Nobody waits for all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import torch

from surgeon import ranks
from surgeon.ending import or_end
from surgeon.model.hidden_states import Shape, States
from surgeon.scores.backward_pass import Progressed
from surgeon.scores.sample import Scores

Made = tuple[int, str, Scores]  # layer, language, scores by name on disk
_GONE_BY = 2  # layers above one that is done whose states no rank can need any more


@dataclass(frozen=True)
class Spread:
    """Who does what: `layers` in their order with the shapes of what is scored in each, languages in the recipe's.

    `last` is the rank that has the last batch of a language, `selecting` are the ranks that select, in turns.
    """

    layers: Mapping[int, Mapping[str, tuple[int, ...]]]
    languages: Sequence[str]
    last: Mapping[str, int]
    selecting: Sequence[int]

    def selects(self, layer: int) -> int:
        """Return the rank that selects in a layer."""
        return self.selecting[list(self.layers).index(layer) % len(self.selecting)]

    def own(self) -> list[int]:
        """Return the layers that this rank selects in."""
        return [layer for layer in self.layers if self.selects(layer) == ranks.rank()]


def exchange(spread: Spread, made: Iterator[Made], layers: Sequence[int]) -> Iterator[Made]:
    """Run this rank's part of a pass, `made`, in a thread; yield what all ranks made of `layers`.

    These are the layers that this rank selects in. All languages of a layer come in a row, in the recipe's order.
    """
    here: Queue[Made] = Queue(1)
    engine = threading.Thread(target=or_end(_run), args=(spread, made, here), name=ranks.ENGINE, daemon=True)
    engine.start()
    for layer in layers:
        for language in spread.languages:
            if spread.last[language] == ranks.rank():
                yield here.get()
            else:
                scores = {name: torch.empty(shape) for name, shape in spread.layers[layer].items()}
                ranks.receive(list(scores.values()), spread.last[language], ranks.SCORES)
                yield layer, language, scores
    engine.join()


def _run(spread: Spread, made: Iterator[Made], here: Queue[Made]) -> None:
    for layer, language, scores in made:
        to = spread.selects(layer)
        if to == ranks.rank():
            here.put((layer, language, scores))
        else:
            ranks.send([scores[name] for name in spread.layers[layer]], to, ranks.SCORES)


class Behind:
    """How far the last of the ranks is: `done` is the lowest layer that is selected in, with all above it."""

    def __init__(self, layers: Sequence[int], done: int, is_done: Callable[[int], bool]) -> None:
        self._coming, self._is_done = [layer for layer in layers if 0 <= layer < done], is_done
        self._done = done

    def done(self) -> int:
        """Look again, and return it."""
        while self._coming and self._is_done(self._coming[0]):
            self._done = self._coming.pop(0)
        return self._done


class LateStates(States):
    """States of which a row is dropped only when no rank could have to go on from it after a crash.

    Every rank has entered a layer that is done, so that none goes on above the next one.
    """

    def __init__(
        self, shapes: Sequence[Shape], dtype: torch.dtype, folder: Path | None, label: str, behind: Behind
    ) -> None:
        super().__init__(shapes, dtype, folder, label)
        self._behind, self._waiting = behind, set[int]()

    def drop(self, row: int) -> None:
        """Drop a row some time from now."""
        self._waiting.add(row)
        for old in [old for old in self._waiting if old >= self._behind.done() + _GONE_BY]:
            super().drop(old)
            self._waiting.remove(old)


def agreed_start(own: Progressed, done: Sequence[int], layers: Sequence[int]) -> Progressed | None:
    """Agree with all ranks on where a pass goes on: at the highest layer that is not done, or that a rank has to do.

    None says that it has to begin anew, and nothing of before may be believed. `done` are those of `layers`, which are
    scored and come in this order, whose selection this rank has put on disk.
    """
    found = ranks.gather((own, list(done)))
    left: int | None = None
    anew = False
    if found:
        there = {layer for _, of_rank in found for layer in of_rank}
        if all(item.left is not None for item, _ in found):
            undone = next((layer for layer in layers if layer not in there), layers[-1])
            left = max(undone + 1, *(int(item.left or 0) for item, _ in found))
        else:
            anew = bool(there)  # a rank has lost what it had, and the others have dropped what it would need
    left, anew = ranks.share((left, anew))
    if anew:
        return None
    return own if own.left is None else Progressed(own.forward, own.forward if left is None else left)
