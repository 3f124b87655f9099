"""Hugging Face `Trainer`, and with it TRL's trainers: `Trainer(..., callbacks=[FreezeCallback(bundle)])`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import transformers

from surgeon.checkpoint.ties import stored_copies
from surgeon.freeze.bundle import Bundle, stored_tensors
from surgeon.freeze.freezing import freeze
from surgeon.freeze.frozen import Frozen
from surgeon.freeze.saved import torch_files, verify_saved
from surgeon.region.region import Region

logger = logging.getLogger(__name__)


class FreezeCallback(transformers.TrainerCallback):
    """Freeze a bundle's entries while a Trainer trains; verify them in every checkpoint and when it ends.

    `frozen` is the `Frozen` object from the beginning of training on. It stays on the model after the end, since what
    becomes of the model then (an average put in by another callback, `save_model`) is looked at when it is saved;
    `frozen.remove()` lets it go. Without a `source` the bundle is that of the checkpoint that the model was loaded
    from. `options` go to `freeze`.
    """

    def __init__(self, source: str | Path | Bundle | Region | None = None, **options: Any) -> None:
        self.source = source
        self.options = options
        self.frozen: Frozen | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze the model.

        Raises:
            FreezeError: the bundle does not fit the model, or the optimizer is one that cannot be followed.
        """
        if self.frozen is not None:
            self.frozen.remove()
        self.frozen = freeze(kwargs["model"], self.source, kwargs.get("optimizer"), **self.options)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Verify the checkpoint that was just written, if it holds the model's weights (an adapter's does not).

        The bundle is put beside it, so that training can go on from there.

        Raises:
            FreezeError: frozen entries have changed in it.
        """
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.frozen is None or not args.should_save or not _holds_weights(folder, self.frozen.bundle):
            return
        checked = verify_saved(folder, self.frozen.bundle)
        self.frozen.bundle.copy_to(folder)
        logger.info("%s: %d frozen entries hold their original bits", folder, checked)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Verify the entries, and put the bundle where `save_model` writes by default.

        Raises:
            FreezeError: entries have moved.
        """
        if self.frozen is not None:
            checked = self.frozen.verify()
            if args.should_save:
                self.frozen.bundle.copy_to(Path(args.output_dir))
            logger.info("%d frozen entries hold their original bits", checked)


def _holds_weights(folder: Path, bundle: Bundle) -> bool:
    """True if `verify_saved` can tell of a folder: the bundle has hashes, and some tensor of it was saved there."""
    if not bundle.tensors or not folder.is_dir():
        return False
    if any(folder.glob("*.safetensors")):
        names = stored_tensors(folder).keys()
        return any(alias in names for name in bundle.names() for alias in stored_copies(bundle.ties, name))
    return any(file.name.startswith("pytorch_model") for file in torch_files(folder))
