"""PEFT: merge an adapter into the base model everywhere but in the frozen entries."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from surgeon.errors import FreezeError
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.fitting import bundle_of
from surgeon.freeze.freezing import take
from surgeon.region.region import Region

logger = logging.getLogger(__name__)


def merge(
    model: Any, source: str | Path | Bundle | Region | None = None, *, train_only: bool = False, **options: Any
) -> Any:
    """Merge a PEFT model's adapter with the mask honoured, `W + (1 - M) * dW`; returns the plain model.

    The adapter is trained as ever: it never writes to the base weights, which hold their bits until the merge.
    The merged model is therefore not quite the one that was trained, where the adapter acted inside the region
    too; measure it. `train_only`, `strict` and `check_values` are those of `freeze`.

    Raises:
        FreezeError: not a PEFT model, its adapter is merged already, or the bundle does not fit.
    """
    if not hasattr(model, "merge_and_unload"):
        raise FreezeError(f"{type(model).__name__} is no PEFT model with an adapter that can be merged")
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise FreezeError("the adapter is merged already, so the base values are gone; call unmerge_adapter() first")
    frozen = take(model, bundle_of(model, source, train_only), **options, keep_values=True)
    merged = model.merge_and_unload()
    kept = frozen.restore(merged)
    frozen.verify(merged)
    frozen.remove()
    logger.info("merged the adapter outside of %d frozen entries, which keep the base's values", kept)
    return merged
