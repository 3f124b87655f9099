"""Hugging Face `Trainer`, and with it TRL's trainers: `Trainer(..., callbacks=[FreezeCallback(bundle)])`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import transformers

from surgeon.errors import FreezeError
from surgeon.freeze.bundle import Bundle
from surgeon.freeze.frozen import Frozen, freeze
from surgeon.region.region import Region

logger = logging.getLogger(__name__)


class FreezeCallback(transformers.TrainerCallback):
    """Freeze a bundle's entries while a Trainer trains, and verify them when it ends.

    It binds when training begins, since the Trainer wraps and shards the model only then. `frozen` is the
    `Frozen` object from that moment on. `options` go to `freeze`.
    """

    def __init__(self, source: str | Path | Bundle | Region, **options: Any) -> None:
        self.source = source
        self.options = options
        self.frozen: Frozen | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze the model and follow the optimizer.

        Raises:
            FreezeError: the bundle does not fit the model.
        """
        if kwargs.get("optimizer") is None:
            raise FreezeError("the Trainer has no optimizer yet when training begins, so nothing can be frozen")
        self.frozen = freeze(kwargs["model"], self.source, kwargs["optimizer"], **self.options)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Verify the entries and take the hooks off.

        Raises:
            FreezeError: entries have moved.
        """
        if self.frozen is not None:
            checked = self.frozen.verify()
            self.frozen.remove()
            logger.info("%d frozen entries hold their original bits", checked)
