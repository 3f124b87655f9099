"""What a model kept of another, language by language: kept, worse or lost, by thresholds that are stated beforehand.

The change in bits per byte is paired by paragraph: its interval is a bootstrap over paragraphs, and whether it could be
chance says the test of `chance`. Many languages are many tests: a rise counts only if it survives at a false discovery
rate of 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from surgeon.measure.uncertainty import RATE, change_interval, probability, survives
from surgeon.model.results import Sums

Verdict = Literal["kept", "worse", "lost"]
VERDICTS: tuple[Verdict, ...] = ("lost", "worse", "kept")

WORSE = 0.02  # more bits per byte than the base, as a share of its own
LOST = 0.25  # the same; about twice the perplexity of a token of four bytes
STAYS = 0.5  # of the base's continuations in the language, below which it is lost
FEWEST_TEXTS = 4  # of these, for continuations alone to speak


@dataclass(frozen=True)
class Change:
    """A language in both models. `change`, `low` and `high` are shares of the base's bits; `p` is `chance`'s.

    `stays` are the shares of continuations in the language, the base's first. `kl` is the mean KL divergence from the
    base in nats per token with its interval, `agreement` the share of tokens at which both hold the same token
    likeliest. None where that was not measured.
    """

    language: str
    verdict: Verdict
    base_bits: float
    bits: float
    change: float
    low: float | None
    high: float | None
    p: float | None
    paragraphs: int
    stays: tuple[float, float] | None = None
    instead: str = ""
    kl: float | None = None
    kl_low: float | None = None
    kl_high: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Audit:
    """What was found; `changes` are the languages, the most damaged first. `names` are theirs, by code.

    `notes` say what of the models was not looked at.
    """

    model: str
    base: str
    same_tokenizer: bool
    changes: tuple[Change, ...]
    names: dict[str, str]
    notes: tuple[str, ...] = ()

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
            "languages (paired t-test over paragraphs); without that, about "
            f"{RATE * len(self.changes):.1f} would look changed by chance",
        ]


def verdicts(
    base: Mapping[str, Sums],
    model: Mapping[str, Sums],
    stays: Mapping[str, tuple[Sums, Sums]],
    instead: Mapping[str, str],
    apart: Mapping[str, Mapping[str, Sums]] | None = None,
) -> list[Change]:
    """Judge every language, the most damaged first.

    Args:
        base: bits of each paragraph, weighted by its bytes, by language.
        model: the same of the other model, of the same paragraphs.
        stays: 1 for each continuation in the language, of base and model, where that was measured.
        instead: what the model's other continuations are in.
        apart: the figures of `Divergence` by language, where both models saw the same tokens.
    """
    chances = {language: probability(base[language], model[language]) for language in base}
    real = {language for language, passed in zip(base, survives(list(chances.values())), strict=True) if passed}
    changes = []
    for language, before in base.items():
        after, whole = model[language], before.value
        change, bounds = after.value / whole - 1, change_interval({language: (before, after)})
        low, high = (None, None) if bounds is None else (bounds.low / whole, bounds.high / whole)
        shares, gone = None, False
        if language in stays:
            own, others = stays[language]
            shares = own.value, others.value
            gone = len(own.weights) >= FEWEST_TEXTS and shares[1] < STAYS * shares[0]
        # A model that gives no numbers has lost the language.
        broken = not math.isfinite(change) or (language in real and change >= LOST)
        verdict: Verdict = "lost" if broken or gone else "worse" if language in real and change >= WORSE else "kept"
        changes.append(
            Change(
                language, verdict, whole, after.value, change, low, high, chances[language],
                len(before.weights), shares, instead.get(language, ""), *_apart((apart or {}).get(language), language),
            )
        )  # fmt: skip
    return sorted(
        changes, key=lambda one: (VERDICTS.index(one.verdict), -math.inf if math.isnan(one.change) else -one.change)
    )


def _apart(sums: Mapping[str, Sums] | None, language: str) -> tuple[float | None, ...]:
    """Return the divergence with its interval, and the agreement."""
    if sums is None:
        return None, None, None, None
    bounds = change_interval({language: (None, sums["kl"])})
    low, high = (None, None) if bounds is None else (bounds.low, bounds.high)
    return sums["kl"].value, low, high, sums["agreement"].value
