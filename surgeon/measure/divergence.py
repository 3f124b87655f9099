"""How far a variant's predictions are from the base's, token by token, in the windows of perplexity.

KL(base || variant) = sum over the vocabulary of p ln(p / q), of the predictions after each token (Kullback and Leibler
1951), exact over the whole vocabulary: both models' outputs of a chunk are there at the same time. It sees change where
perplexity hides it, since gains and losses of single tokens do not cancel. Agreement is the share of tokens at which
both hold the same token likeliest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from surgeon.errors import present
from surgeon.measure.base import Measurement, Seen
from surgeon.model.results import Quantity

if TYPE_CHECKING:
    import torch

_IN_CACHE = 1 << 18  # differences that are made at a time, of which there are three arrays


class Divergence(Measurement):
    """How far a variant's predictions are from the base's."""

    kind: ClassVar[str] = "divergence"
    description: ClassVar[str] = "how far a variant's predictions are from the base's"
    on_by_default: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    def quantities(self) -> Sequence[Quantity]:
        """Return divergence, in two units, and agreement."""
        return [
            Quantity("kl", "KL from the base", "nats/token", worse="more", compare="base"),
            Quantity("kl_bits", "KL from the base", "bits/token", worse="more", compare="base"),
            Quantity("agreement", "same likeliest token", "", worse="less", compare="base", share=True),
        ]

    def values(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Return the divergence at each token, and 1 where the likeliest token is the same.

        The difference of logarithms is taken first, so that small divergences keep their digits in float32; below some
        1e-7 nats they are rounding, and may be negative.
        """
        import torch

        base = present(seen.base)
        apart = (base.probabilities, base.log_probabilities, seen.outputs.log_probabilities)
        rows, vocabulary = base.log_probabilities.shape[:-1], base.log_probabilities.shape[-1]
        # The differences need never leave the processor's cache: several times as fast as all of them at once.
        together = max(1, _IN_CACHE // vocabulary) if base.logits.device.type == "cpu" else rows.numel()
        blocks = zip(*(torch.split(values.flatten(0, -2), together) for values in apart), strict=True)
        nats = torch.cat([torch.linalg.vecdot(p, of_base - of_other) for p, of_base, of_other in blocks]).view(rows)
        same = (base.likeliest == seen.outputs.likeliest).float()
        return {"kl": nats, "kl_bits": nats / math.log(2), "agreement": same}
