"""What a dequantized copy of a checkpoint is made of: its shards and their headers, its config, its index."""

from __future__ import annotations

import json
from collections.abc import Sequence

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Coded, parts_of
from surgeon.checkpoint.plain_json import read_object
from surgeon.checkpoint.storage import DTYPE_BITS, Header, TensorInfo, header_bytes
from surgeon.checkpoint.weight_files import INDEX_NAME, SINGLE_NAME

_SPEAKS_OF_CODES = ("quantization_config", "compression_config")
_CONFIG = "config.json"
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def plain_dtypes(checkpoint: Checkpoint) -> list[str]:
    """Return the dtypes that quantized tensors decode to, as recipes name them; empty if there are none."""
    found = dict.fromkeys(info.dtype for info in checkpoint.tensors.values() if isinstance(info, Coded))
    return [_NAMES.get(dtype, dtype) for dtype in found]


def tensors_of(checkpoint: Checkpoint, header: Header) -> list[TensorInfo]:
    """Return the logical tensors of a file's plain copy, wide dtypes first, so that all are aligned.

    A tensor is where its codes are; scales are nowhere.
    """
    here = [info for info in checkpoint.tensors.values() if parts_of(info)[0].path == header.path]
    return sorted(here, key=lambda info: -DTYPE_BITS[info.dtype])


def plain_start(header: Header, infos: Sequence[TensorInfo]) -> bytes:
    """Return the length word and the header of a file's plain copy."""
    return header_bytes([(info.name, info.dtype, info.shape) for info in infos], header.metadata)


def plain_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes of all weight files of a plain copy."""
    files = [(header, tensors_of(checkpoint, header)) for header in checkpoint.headers]
    return sum(len(plain_start(header, infos)) + sum(info.nbytes for info in infos) for header, infos in files)


def plain_companions(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the files beside the weights that are others in a plain copy: a config without codes, a true index."""
    made = {}
    if (checkpoint.folder / _CONFIG).is_file():
        config = read_object(checkpoint.folder / _CONFIG, unique=False)
        for place in (config, config.get("text_config")):
            if isinstance(place, dict):
                for key in _SPEAKS_OF_CODES:
                    place.pop(key, None)
        made[_CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    files = {header.path.name: tensors_of(checkpoint, header) for header in checkpoint.headers}
    if checkpoint.index is not None or files.keys() != {SINGLE_NAME}:
        sizes = sum(info.nbytes for infos in files.values() for info in infos)
        names = {info.name: file for file, infos in files.items() for info in infos}
        index = {"metadata": {"total_size": sizes}, "weight_map": dict(sorted(names.items()))}
        name = checkpoint.index.name if checkpoint.index is not None else INDEX_NAME
        made[name] = (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()
    return made
