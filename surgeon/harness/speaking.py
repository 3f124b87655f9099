"""Texts that tasks have a model continue: by transformers' own generation, as the harness asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from surgeon.errors import InputError, reason
from surgeon.foreign import load_generation_config
from surgeon.harness.models import Speech, instance, speaker
from surgeon.harness.running import quiet
from surgeon.model.editing import Variant, edited

if TYPE_CHECKING:
    from surgeon.model.layer_stack import Stack
    from surgeon.progress import Progress


def speak(
    stack: Stack, variants: Sequence[Variant], speeches: Sequence[Speech], progress: Progress
) -> dict[str, dict[Speech, str]]:
    """Return what each model says, by variant and by what it was asked; the model must stay in memory.

    Raises:
        InputError: a text and what is to follow are longer than the model has positions.
    """
    loaded, found = stack.loaded, {}
    _take_settings(stack)
    with (
        torch.inference_mode(),
        loaded.weights.resident(list(loaded.model.parameters())),
        progress.task("answers of tasks", len(variants)) as advance,
    ):
        for variant in variants:
            with edited(loaded, variant, variant.touched(loaded)), quiet():
                model = speaker(loaded.tokenizer, loaded.model)
                try:
                    said = model.generate_until([instance(one) for one in speeches], disable_tqdm=True)
                except AssertionError as error:
                    raise InputError(f"a task's texts do not fit the model: {reason(error)}") from None
            found[variant.name] = dict(zip(speeches, said, strict=True))
            advance(1)
    return found


def _take_settings(stack: Stack) -> None:
    """Give the model the settings of generation that lie beside it, as `from_pretrained` does."""
    folder = stack.loaded.checkpoint.folder
    if (folder / "generation_config.json").is_file():
        stack.loaded.model.generation_config = load_generation_config(folder)
