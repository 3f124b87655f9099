"""PyTorch Lightning: `Trainer(callbacks=[LightningFreeze(bundle)])`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from surgeon.freeze.bundle import Bundle
from surgeon.freeze.freezing import freeze
from surgeon.freeze.frozen import Frozen
from surgeon.region.region import Region

logger = logging.getLogger(__name__)


class LightningFreeze(Callback):
    """Freeze a bundle's entries while a Lightning Trainer fits, and verify them when it ends.

    It binds at `on_train_start`, when the strategy has set the model and optimizers up and a checkpoint, if
    any, has been restored. `frozen` is the `Frozen` object from that moment on. `options` go to `freeze`.

    The averaged models of Lightning's own callbacks (`EMAWeightAveraging`, `StochasticWeightAveraging`) are frozen
    too, wherever they stand in the list: each reads its average in a later hook than the one that updates it, and
    the entries are put back in between.
    """

    def __init__(self, source: str | Path | Bundle | Region | None = None, **options: Any) -> None:
        self.source = source
        self.options = options
        self.frozen: Frozen | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Freeze the module and its averages, and follow all its optimizers.

        Raises:
            FreezeError: the bundle does not fit the module.
        """
        self.frozen = freeze(pl_module, self.source, list(trainer.optimizers), **self.options)
        for callback in trainer.callbacks:
            average = getattr(callback, "_average_model", None)
            if isinstance(average, torch.nn.Module):
                self.frozen.follow(average)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Put the entries back into averages."""
        if self.frozen is not None:
            self.frozen.restore_copies()

    # Validation may swap averages into the model, and at the end they become it.
    on_train_epoch_start = on_validation_start = on_train_end = on_train_batch_end

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Verify what all callbacks have left, and take the hooks off.

        Raises:
            FreezeError: entries have moved.
        """
        if self.frozen is not None:
            checked = self.frozen.verify()
            self.frozen.remove()
            logger.info("%d frozen entries hold their original bits", checked)
