"""Passages of text with what each of their words costs the models: which words a variant does worse on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from surgeon.measure.words import Words
from surgeon.model.results import Verification
from surgeon.report.measured_entries import PassageReport

_TONES = ((6.0, "worst"), (3.0, "worse-still"), (1.0, "worse-word"))  # from so many nats more than the base on


@dataclass(frozen=True)
class Word:
    """A word as it is shown: the blank before it, its text, how much worse it is, and both losses in words."""

    blank: str
    text: str
    tone: str
    note: str


def passages(found: Verification) -> dict[str, PassageReport]:
    """Return the passages that were looked at word by word, by language."""
    result: dict[str, PassageReport] = {}
    for name, by_kind in found.figures.items():
        for sample in by_kind[Words.kind].samples if Words.kind in by_kind else ():
            losses = {name: [None if loss is None else round(loss, 3) for loss in sample["losses"]]}
            known = result.get(sample["language"])
            result[sample["language"]] = (
                PassageReport(tokens=sample["tokens"], words=sample["words"], losses=losses)
                if known is None
                else known.model_copy(update={"losses": known.losses | losses})
            )
    return result


def words(passage: PassageReport, variant: str) -> list[Word]:
    """Return a passage's words as a variant finds them; a word's loss is the sum of its tokens'."""
    before, after = passage.losses["base"], passage.losses[variant]
    shown = []
    for start, stop in pairwise([*passage.words, len(passage.tokens)]):
        whole = "".join(passage.tokens[start:stop])
        text = whole.lstrip()
        tone, note = _tone(before[start:stop], after[start:stop])
        shown.append(Word(" " if text != whole else "", text, tone if text else "", note))
    return shown


def _tone(before: Sequence[float | None], after: Sequence[float | None]) -> tuple[str, str]:
    own = sum(loss for loss in before if loss is not None)
    if None in after:
        return _TONES[0][1], f"{own:.1f} nats, then not a number"
    now = sum(loss for loss in after if loss is not None)
    tone = next((tone for least, tone in _TONES if now - own >= least), "")
    return tone, f"{own:.1f} nats, then {now:.1f}"
