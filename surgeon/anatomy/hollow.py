"""The model that transformers builds for a checkpoint's config, without memory: every tensor on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.config import LAYERS, whole_number
from surgeon.errors import CheckpointError, SurgeonError, reason
from surgeon.foreign import ForeignCode, load_config, model_classes

_MANY_LAYERS = 200  # that any config may ask for


@dataclass(frozen=True)
class Architecture:
    """What transformers has for a config: `auto` builds `model_class` of `config`.

    `text_alone` is False for a model that reads images too, and whose text decoder is a part of it.
    """

    auto: Any
    model_class: Any
    config: Any
    text_alone: bool


def architecture(checkpoint: Checkpoint) -> Architecture:
    """Find the model class of a checkpoint: a causal language model, or one that reads images and text.

    Raises:
        CheckpointError: there is none in transformers, or the config does not describe one.
    """
    import transformers

    if not checkpoint.config:
        raise CheckpointError(f"{checkpoint.folder}: no config.json, so the model cannot be built")
    _refuse_layers(checkpoint)
    try:
        config = load_config(checkpoint.folder)
    except (MemoryError, OSError):
        raise
    except ForeignCode as error:
        raise CheckpointError(
            f"{checkpoint.folder}: {error}; surgeon runs only the architectures of transformers itself. Regions from a "
            "file, or random ones, still apply without running it"
        ) from None
    except Exception as error:  # what the library makes of a damaged config is not told beforehand
        raise CheckpointError(_words(checkpoint, error)) from None
    chosen = _chosen(checkpoint, config)
    if chosen is None:
        raise CheckpointError(
            f"{checkpoint.folder}: model_type '{config.model_type}' has no causal language model in transformers "
            f"{transformers.__version__}"
        )
    return chosen


def _words(checkpoint: Checkpoint, error: Exception) -> str:
    """Say why there is no config: the family is unknown, or what stands in the file is not what it must be."""
    import transformers

    kind, version = checkpoint.config.get("model_type"), transformers.__version__
    if kind is None:
        return f"{checkpoint.folder}: config.json has no model_type, so the model cannot be built"
    if kind not in transformers.CONFIG_MAPPING:
        return f"{checkpoint.folder}: model_type '{kind}' is none that transformers {version} has"
    return f"{checkpoint.folder / 'config.json'}: transformers {version} does not take it: {reason(error)}"


def _chosen(checkpoint: Checkpoint, config: Any) -> Architecture | None:
    """Choose between the two kinds of models by the class that the config names; else what is causal comes first."""
    text = config.get_text_config() is config
    candidates = [Architecture(auto, model_class, config, text) for auto, model_class in model_classes(config)]
    if not candidates:
        return None
    said = checkpoint.config.get("architectures")
    named = said if isinstance(said, list) else []  # of any type in a damaged config
    chosen = next((item for item in candidates if item.model_class.__name__ in named), candidates[0])
    if chosen.model_class.config_class == config.sub_configs.get("text_config"):
        return Architecture(chosen.auto, chosen.model_class, config, True)
    return chosen


def meta_model(checkpoint: Checkpoint) -> Any:
    """Build the model of a checkpoint on the meta device, in no time and no memory.

    Raises:
        CheckpointError: see `architecture`, or the config describes no model that can be built.
    """
    import torch

    chosen = architecture(checkpoint)
    config = chosen.config
    if chosen.model_class.config_class == config.sub_configs.get("text_config"):
        config = config.get_text_config()
    with torch.device("meta"), building(checkpoint):
        return chosen.model_class(config)


@contextmanager
def building(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn the failures of a config that describes no model into one clear error."""
    try:
        yield
    except (MemoryError, OSError, SurgeonError):
        raise
    except Exception as error:  # of any kind: sizes that do not divide, are negative, or are more than memory
        raise CheckpointError(
            f"{checkpoint.folder}: config.json describes no model that can be built ({reason(error)})"
        ) from None


def _refuse_layers(checkpoint: Checkpoint) -> None:
    """Refuse a config that asks for more layers than there are tensors: to build them alone could take forever."""
    for part in (checkpoint.config, checkpoint.config.get("text_config") or {}):
        layers = whole_number(part, *LAYERS)
        tensors = len(checkpoint.tensors)
        if layers > max(_MANY_LAYERS, tensors):
            raise CheckpointError(f"{checkpoint.folder}: {layers:,} layers by its config.json, but {tensors:,} tensors")
