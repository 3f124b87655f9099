"""Hugging Face `Trainer`, and with it TRL's trainers: `Trainer(..., callbacks=[FreezeCallback(bundle)])`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import transformers

from surgeon.errors import FreezeError
from surgeon.freeze.bundle import Bundle, stored_tensors
from surgeon.freeze.frozen import Frozen, freeze
from surgeon.freeze.saved import torch_files, verify_saved
from surgeon.region.region import Region

logger = logging.getLogger(__name__)


class FreezeCallback(transformers.TrainerCallback):
    """Freeze a bundle's entries while a Trainer trains; verify them in every checkpoint and when it ends.

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

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Verify the checkpoint that was just written, if it holds the model's weights (an adapter's does not).

        Raises:
            FreezeError: frozen entries have changed in it.
        """
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.frozen is None or not args.should_save or not _holds_weights(folder, self.frozen.bundle):
            return
        checked = verify_saved(folder, self.frozen.bundle)
        logger.info("%s: %d frozen entries hold their original bits", folder, checked)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Verify the entries and take the hooks off.

        Raises:
            FreezeError: entries have moved.
        """
        if self.frozen is not None:
            checked = self.frozen.verify()
            self.frozen.remove()
            logger.info("%d frozen entries hold their original bits", checked)


def _holds_weights(folder: Path, bundle: Bundle) -> bool:
    """True if `verify_saved` can tell of a folder: the bundle has hashes, and some tensor of it was saved there."""
    if not bundle.tensors or not folder.is_dir():
        return False
    if any(folder.glob("*.safetensors")):
        names = stored_tensors(folder).keys()
        return any(name in names for name in (*bundle.names(), *(other for group in bundle.ties for other in group)))
    return any(file.name.startswith("pytorch_model") for file in torch_files(folder))
