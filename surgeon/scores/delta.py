"""The size of a change: |weight - other|, and TALL's mask as a threshold of a ratio. Neither text nor a model run.

With theta the weight, theta_t another model's and theta_M that of a model merged of it and others, TALL keeps the
entries with |theta_t - theta| >= lambda |theta_M - theta_t| (arXiv 2405.07813, its task vectors written out). The
score is the quotient of both sides, so that `at_least` is lambda; where the merger lost nothing it is infinite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.scores.base import Reader, WeightScore


class Delta(WeightScore):
    """|weight - another checkpoint's|: what training changed; no model is run and no text read."""

    kind: Literal["delta"] = Field(description="the score: the size of a change")
    other: str = Field(description="the other model: folder, builtin:NAME, or Hub id")
    merged: str | None = Field(
        None, description="a model that `other` was merged into: the change is divided by what the merger lost of it"
    )

    bytes_per_entry: ClassVar[int] = 48  # weights, the other's and the merger's in float64, with their differences

    @property
    def compared_with(self) -> Mapping[str, str]:
        """The other model, and the merger."""
        return {"other": self.other} | ({} if self.merged is None else {"merged": self.merged})

    def described(self) -> str:
        """Say what the weights are compared with."""
        return f"difference from {self.other}, from the weights alone"

    def reader(self, checkpoint: Checkpoint) -> Reader:
        """Return the size of a tensor's change, or of its quotient by what the merger lost."""
        models = [Checkpoint.open(name) for name in self.compared_with.values()]
        return lambda name: delta(checkpoint.array(name), *(model.array(name) for model in models))


def delta(weights: NDArray[Any], other: NDArray[Any], merged: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """Return |weights - other| of one tensor, or its quotient by |merged - other|; in float64, rounded to float32."""
    theirs = other.astype(np.float64)
    change = np.abs(weights.astype(np.float64) - theirs)
    if merged is not None:
        lost = np.abs(merged.astype(np.float64) - theirs)
        change = np.divide(change, lost, out=np.full_like(change, np.inf), where=lost > 0)
    with np.errstate(over="ignore"):
        return change.astype(np.float32)
