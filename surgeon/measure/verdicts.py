"""What a model kept of another, language by language: kept, worse or lost, by thresholds that are stated beforehand.

The change in bits per byte is paired by paragraph. Its interval is a bootstrap over paragraphs; how likely so large a
rise would come of nothing says a sign-flip test over them (Fisher 1935), one-sided. Many languages are many tests: a
rise counts only if it survives at a false discovery rate of 5 % (Benjamini and Hochberg 1995).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from surgeon.measure.intervals import SEED, change_interval
from surgeon.model.results import Sums
from surgeon.seeds import generator

Verdict = Literal["kept", "worse", "lost"]
VERDICTS: tuple[Verdict, ...] = ("lost", "worse", "kept")

WORSE = 0.02  # more bits per byte than the base, as a share of its own
LOST = 0.25  # the same; about twice the perplexity of a token of four bytes
STAYS = 0.5  # of the base's continuations in the language, below which it is lost
FEWEST_TEXTS = 4  # of these, for continuations alone to speak
RATE = 0.05
_FLIPS = 9999


@dataclass(frozen=True)
class Change:
    """A language in both models. `change`, `low` and `high` are shares of the base's bits per byte; `p` is one-sided.

    `stays` are the shares of continuations in the language, the base's first; None where that was not measured.
    """

    language: str
    verdict: Verdict
    base_bits: float
    bits: float
    change: float
    low: float | None
    high: float | None
    p: float
    paragraphs: int
    stays: tuple[float, float] | None = None
    instead: str = ""


@dataclass(frozen=True)
class Audit:
    """What was found; `changes` are the languages, the most damaged first. `names` are theirs, by code."""

    model: str
    base: str
    same_tokenizer: bool
    changes: tuple[Change, ...]
    names: dict[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """How many languages are kept, worse and lost."""
        return {name: sum(one.verdict == name for one in self.changes) for name in VERDICTS}

    @property
    def rules(self) -> list[str]:
        """The thresholds, in words."""
        texts = f"of {FEWEST_TEXTS} or more continuations fewer than {STAYS:.0%} of the base's are in the language"
        return [
            f"lost: at least {LOST:.0%} more bits per byte than the base, or {texts}",
            f"worse: at least {WORSE:.0%} more bits per byte",
            f"A rise counts only if it survives at a false discovery rate of {RATE:.0%} over all {len(self.changes)} "
            "languages (sign-flip test over paragraphs); without that, about "
            f"{RATE * len(self.changes):.1f} would look worse by chance",
        ]


def verdicts(
    base: Mapping[str, Sums],
    model: Mapping[str, Sums],
    stays: Mapping[str, tuple[Sums, Sums]],
    instead: Mapping[str, str],
) -> list[Change]:
    """Judge every language, the most damaged first.

    Args:
        base: bits of each paragraph, weighted by its bytes, by language.
        model: the same of the other model, of the same paragraphs.
        stays: 1 for each continuation in the language, of base and model, where that was measured.
        instead: what the model's other continuations are in.
    """
    rises = {language: flipped(base[language], model[language], language) for language in base}
    real = discoveries(rises)
    found = []
    for language, before in base.items():
        after = model[language]
        bounds = change_interval(before, after, language)
        change = after.value / before.value - 1
        low = None if bounds is None else bounds.low / before.value
        pair = stays.get(language)
        shares = None if pair is None else (pair[0].value, pair[1].value)
        silent = shares is not None and pair is not None and len(pair[0].weights) >= FEWEST_TEXTS
        gone = silent and shares is not None and shares[1] < STAYS * shares[0]
        # nan: a model that gives no numbers has lost the language
        broken = math.isnan(change) or (language in real and change >= LOST)
        verdict: Verdict = "lost" if broken or gone else "worse" if language in real and change >= WORSE else "kept"
        high = None if bounds is None else bounds.high / before.value
        found.append(
            Change(
                language, verdict, before.value, after.value, change, low, high, rises[language],
                len(before.weights), shares, instead.get(language, ""),
            )
        )  # fmt: skip
    return sorted(
        found, key=lambda one: (VERDICTS.index(one.verdict), -math.inf if math.isnan(one.change) else -one.change)
    )


def flipped(base: Sums, model: Sums, label: str) -> float:
    """Return how often signs drawn by lot for the paragraphs' changes give as large a rise, at least 1 in 10,000."""
    changes = np.array(model.totals) - np.array(base.totals)
    if not np.isfinite(changes).all():  # the model is broken
        return 1 / (_FLIPS + 1)
    signs = generator(SEED, f"signs:{label}").choice([-1.0, 1.0], size=(_FLIPS, changes.size))
    least = changes.sum() - 1e-12 * abs(changes.sum())  # sums of the same numbers may round otherwise
    return float((1 + int((signs @ changes >= least).sum())) / (_FLIPS + 1))


def discoveries(chances: Mapping[str, float], rate: float = RATE) -> set[str]:
    """Return what survives at a false discovery rate (Benjamini and Hochberg 1995)."""
    ordered = sorted(chances, key=lambda name: chances[name])
    passed = [rank for rank, name in enumerate(ordered, 1) if chances[name] <= rate * rank / len(ordered)]
    return set(ordered[: max(passed, default=0)])
