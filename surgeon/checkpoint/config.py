"""`config.json`, as far as surgeon itself reads it: what each of these fields must be, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.checkpoint.plain_json import NotPlain, read_object
from surgeon.errors import CheckpointError

_LONGEST = 1 << 22  # bytes; the longest known, of quantizers that list their layers, have some hundred kilobytes
_LARGEST = 2**40  # of a size: far beyond any model's, so that what is larger is a mistake
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # what families call how many there are
_KINDS: Mapping[str, tuple[type, str]] = {
    "model_type": (str, "text"),
    "text_config": (dict, "an object"),
    "tie_word_embeddings": (bool, "true or false"),
}
_SETTINGS = "hf_quant_config.json"  # where ModelOpt says what config.json may not


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config that lies beside the weights; {} if there is none.

    A key that is given twice counts as the last one does, as for transformers.

    Raises:
        CheckpointError: it is damaged, or a field is not what it must be.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = read_object(path, _LONGEST, unique=False)
        for part in (config, config.get("text_config")):
            _check(part if isinstance(part, dict) else {})
    except NotPlain as error:
        raise CheckpointError(f"{path}: {error}; fetch the file again") from None
    return config


def of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config with what it says of the text model in place of what it says of the whole."""
    return {**config, **(config.get("text_config") or {})}


def whole_number(config: Mapping[str, Any], *names: str) -> int:
    """Return the first of some fields that says how many; of a list with one number per layer, the largest; else 0."""
    for name in names:
        given = config.get(name)
        numbers = given if isinstance(given, list) else [given]
        counts = [number for number in numbers if type(number) is int and 0 < number < _LARGEST]
        if counts and len(counts) == len(numbers):
            return max(counts)
    return 0


def _check(config: Mapping[str, Any]) -> None:
    for name, (kind, word) in _KINDS.items():
        given = config.get(name)
        if given is not None and not isinstance(given, kind):
            raise NotPlain(f"`{name}` must be {word}, and is {type(given).__name__}")
    for name in LAYERS:  # of which transformers makes a list before anything can be held against the tensors
        given = config.get(name)
        if type(given) is int and given >= _LARGEST:
            raise NotPlain(f"`{name}` is not a number of layers")


def quantizer_settings(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return what config.json, or ModelOpt's file beside it, says of a quantizer; `quant_method` names it."""
    for part in (config, config.get("text_config") or {}):
        said: Any = part.get("quantization_config") or part.get("compression_config")
        if said:
            return said if isinstance(said, Mapping) else {"quant_method": str(said)}
    path = folder / _SETTINGS
    if not path.is_file():
        return {}
    try:
        said = read_object(path, unique=False)
    except (NotPlain, OSError):
        return {"quant_method": "modelopt"}
    producer, quantization = said.get("producer"), said.get("quantization")
    name = str(producer.get("name", "modelopt")) if isinstance(producer, Mapping) else "modelopt"
    return {**(quantization if isinstance(quantization, Mapping) else {}), "quant_method": name}
