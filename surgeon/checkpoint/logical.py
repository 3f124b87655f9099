"""Which logical tensors lie in stored ones: every format is asked for those that it knows.

Formats are asked only where a tensor's dtype is one of codes, so that plain checkpoints never load them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.checkpoint.plain_json import NotPlain, read_object
from surgeon.checkpoint.storage import TensorInfo
from surgeon.kinds import kinds

# Packed codes; and eight-bit floats, which without scales are the values themselves, unless the config says otherwise.
_PACKED = {"U8", "I8", "U16", "I16", "I32", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2"}
_SETTINGS = "hf_quant_config.json"  # where ModelOpt says what config.json may not


def is_code(dtype: str) -> bool:
    """True for dtypes in which quantizers keep codes: lengths of such tensors are no widths of the model."""
    return dtype in _PACKED


def logical_tensors(
    config: Mapping[str, Any], folder: Path, stored: Mapping[str, TensorInfo]
) -> Mapping[str, TensorInfo]:
    """Return the logical tensors that lie in stored ones, each where its codes stand; plain ones are themselves.

    Raises:
        CheckpointError: tensors are of a known format and do not fit it, see `Codec.claim`.
    """
    if not any(is_code(info.dtype) for info in stored.values()):
        return stored
    left, settings = dict(stored), quantizer_settings(config, folder)
    if not settings:  # then transformers would take the codes for the values
        return stored
    coded: dict[str, TensorInfo] = {}
    for format_ in kinds("surgeon.formats").values():
        for tensor in format_.claim(config, settings, left):
            coded[tensor.codes.name] = tensor
            for part in tensor.parts.values():
                left.pop(part.name, None)
    if not coded:
        return stored
    infos = (coded.get(name) or left.get(name) for name in stored)
    return {info.name: info for info in infos if info is not None}


def quantizer_settings(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return what config.json, or ModelOpt's file beside it, says of a quantizer; `quant_method` names it."""
    inner = config.get("text_config") or {}
    for place in (config, inner):
        said: Any = place.get("quantization_config") or place.get("compression_config")
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
