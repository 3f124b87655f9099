"""PyTorch Lightning: `Trainer(callbacks=[LightningFreeze(bundle)])`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from surgeon.freeze.bundle import Bundle
from surgeon.freeze.frozen import Frozen, freeze
from surgeon.region.region import Region

logger = logging.getLogger(__name__)


class LightningFreeze(Callback):
    """Freeze a bundle's entries while a Lightning Trainer fits, and verify them when it ends.

    It binds at `on_train_start`, when the strategy has set the model and optimizers up and a checkpoint, if
    any, has been restored. `frozen` is the `Frozen` object from that moment on. `options` go to `freeze`.
    """

    def __init__(self, source: str | Path | Bundle | Region, **options: Any) -> None:
        self.source = source
        self.options = options
        self.frozen: Frozen | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Freeze the module and follow all its optimizers.

        Raises:
            FreezeError: the bundle does not fit the module.
        """
        self.frozen = freeze(pl_module, self.source, list(trainer.optimizers), **self.options)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Verify the entries and take the hooks off.

        Raises:
            FreezeError: entries have moved.
        """
        if self.frozen is not None:
            checked = self.frozen.verify()
            self.frozen.remove()
            logger.info("%d frozen entries hold their original bits", checked)
