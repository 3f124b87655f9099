"""What running models gives: figures of measurements, perplexities and continuations, as data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Predicted tokens of a language below which nothing is said of it in a sentence. The paired difference of two models
# varies by some 2 nats from token to token, so that the mean of n tokens is sure to about 2 / sqrt(n): at 64 tokens to
# a quarter of a nat, a factor of 1.3 in perplexity; with fewer a harmless cut and a harmful one look alike.
FEWEST_TOKENS = 64
PERPLEXITY, CONTINUATIONS = "perplexity", "continuations"  # of what is found of a model, these have a form of their own
Stopped = Literal["length", "end", "nan"]


@dataclass(frozen=True)
class Measure:
    """`nll` is the sum of negative log-likelihoods in nats over `tokens` tokens, which are `bytes` of text.

    `pieces` are both sums of each independent piece of text, in order, for intervals: its sentences, or the windows.
    """

    nll: float
    tokens: int
    bytes: int
    pieces: tuple[tuple[float, int], ...] = field(default=(), repr=False)

    @property
    def sums(self) -> Sums:
        """The pieces as the sums of any other measurement."""
        return Sums(tuple(nll for nll, _ in self.pieces), tuple(float(tokens) for _, tokens in self.pieces))

    @property
    def log_perplexity(self) -> float:
        """Nats per token; the perplexity's logarithm, finite where the perplexity overflows."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token); inf where that overflows."""
        return exponential(self.log_perplexity)

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per byte of text."""
        return self.nll / math.log(2) / self.bytes


@dataclass(frozen=True)
class Quantity:
    """Something that a measurement tells: `name` in the report, `title` for people, `unit` (none if empty).

    `worse` says in which direction a model gets worse. `compare` says how a variant stands beside the base: by the
    `ratio` of exponentials (the sums are logarithms, shown as their exponential), by the `difference`, or not at all,
    since the value is a comparison with the `base` already. A `share` is shown in per cent; `chance` is what a model
    would reach that knows nothing.
    """

    name: str
    title: str
    unit: str
    worse: Literal["more", "less"]
    compare: Literal["ratio", "difference", "base"]
    share: bool = False
    chance: float | None = None


@dataclass(frozen=True)
class Sums:
    """A figure, as sums over independent pieces of text, in their order: the sum of totals over that of weights."""

    totals: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def value(self) -> float:
        """The mean over all pieces; nan if they weigh nothing."""
        weight = math.fsum(self.weights)
        return sum(self.totals) / weight if weight else math.nan


@dataclass(frozen=True)
class Figures:
    """What one measurement found of one model: by group (a language, or a task) and quantity.

    `samples` are single findings, of plain data, for those who want to look at them. `quantities` are what is told,
    where the kind itself cannot know it. `remarks` say more of a group in words.
    """

    groups: dict[str, dict[str, Sums]] = field(default_factory=dict)
    samples: tuple[dict[str, Any], ...] = ()
    quantities: tuple[Quantity, ...] = ()
    remarks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Continuation:
    """A prompt and the text that a model puts after it, in `tokens` tokens.

    `stopped` says why it ends there: after the `length` asked for, at an `end` token of the model's, or because the
    model's output was `nan`.
    """

    prompt: str
    continuation: str
    tokens: int
    stopped: Stopped


@dataclass(frozen=True)
class Verification:
    """What was found, by model: `measures` (perplexities) per language, and `continuations` of the prompts, if any.

    `figures` are those of all other measurements, by model and by the name of their kind.
    """

    measures: dict[str, dict[str, Measure]] = field(default_factory=dict)
    continuations: dict[str, list[Continuation]] = field(default_factory=dict)
    figures: dict[str, dict[str, Figures]] = field(default_factory=dict)

    def joined(self, other: Verification) -> Verification:
        """Return what both hold."""
        models = dict.fromkeys((*self.figures, *other.figures))
        figures = {name: self.figures.get(name, {}) | other.figures.get(name, {}) for name in models}
        return Verification(self.measures | other.measures, self.continuations | other.continuations, figures)

    def ordered(self, names: Iterable[str]) -> Verification:
        """Return the same with its models in an order."""
        names = list(names)
        return Verification(
            {name: self.measures[name] for name in names if name in self.measures},
            {name: self.continuations[name] for name in names if name in self.continuations},
            {name: self.figures[name] for name in names if name in self.figures},
        )


def exponential(nats: float) -> float:
    """Return exp(nats); inf where that overflows, nan for nan."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def geometric_mean(measures: Mapping[str, Measure]) -> float:
    """Return the mean of the log-perplexities (the logarithm of the geometric mean perplexity), in nats."""
    return math.fsum(m.log_perplexity for m in measures.values()) / len(measures)
