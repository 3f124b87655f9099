"""Perplexity per language: the exponential of the mean negative log-likelihood of a text's tokens.

Token-weighted: exp(sum of negative log-likelihoods / number of predicted tokens), sums in float64. Bits per
byte stand beside it, because perplexities of models with different tokenizers do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from surgeon.measure.base import Measurement, Seen
from surgeon.model.results import Figures, Measure, Quantity

if TYPE_CHECKING:
    import torch


class Perplexity(Measurement):
    """How surprised a model is by the text; always measured."""

    kind: ClassVar[str] = "perplexity"
    description: ClassVar[str] = "how surprised a model is by the text"

    def quantities(self) -> Sequence[Quantity]:
        """Return the one."""
        return [Quantity("perplexity", "perplexity", "", worse="more", compare="ratio")]

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return the losses."""
        return {"perplexity": seen.losses}


def as_measures(found: Figures, sizes: Mapping[str, int]) -> dict[str, Measure]:
    """Return perplexities by language; `sizes` are the bytes of text whose tokens were predicted."""
    result = {}
    for language, by_name in found.groups.items():
        sums = by_name["perplexity"]
        pieces = tuple((nll, int(tokens)) for nll, tokens in zip(sums.totals, sums.weights, strict=True))
        total = 0.0
        for nll in sums.totals:
            total += nll
        result[language] = Measure(total, int(sum(sums.weights)), sizes[language], pieces)
    return result
