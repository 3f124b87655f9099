"""Checkpoints whose weights a quantizer packed: how, a refusal of formats that no codec knows, and their plain copy.

The tensors decide. A config may still speak of a quantizer whose work was undone, or not of the one that packed the
weights; its words count where the tensors leave open what they are. A plain copy is what dequantizing writes: its
shards with their headers, its config, its index.
"""

from __future__ import annotations

import json

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.coded import Codec, Coded, is_code, parts_of
from surgeon.checkpoint.config import quantizer_settings
from surgeon.checkpoint.plain_json import read_object
from surgeon.checkpoint.storage import DTYPE_BITS, Header, TensorInfo, header_bytes
from surgeon.checkpoint.weight_files import INDEX_NAME, SINGLE_NAME, index_bytes
from surgeon.errors import CheckpointError

# Last parts of tensor names that only quantizers write. What comes first tells more.
_TRACES = {
    "weight_scale_2": "nvfp4", "weight_global_scale": "nvfp4",
    "qweight": "gptq or awq", "qzeros": "gptq or awq",
    "bitsandbytes__nf4": "bitsandbytes", "bitsandbytes__fp4": "bitsandbytes", "absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_packed": "compressed-tensors",
    "weight_scale_inv": "fp8", "weight_scale": "fp8",
}  # fmt: skip
_BLOCKS, _SCALES = "_blocks", "_scales"  # of MXFP4, behind a parameter's name
_BROAD = ("modelopt", "compressed-tensors", "quark", "auto-round")  # one name for formats of several kinds
# Formats that transformers writes back as plain weights, by the name in the config, with what they are loaded with.
# Without a config that tells, transformers takes the codes for the values.
_LOADED_WITH = {
    "fp8": "FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "Mxfp4Config(dequantize=True)",
    "compressed-tensors": "CompressedTensorsConfig(dequantize=True)",
}
_CONFIG, _SPEAKS_OF_CODES = "config.json", ("quantization_config", "compression_config")
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def quantization(checkpoint: Checkpoint) -> str | None:
    """Return how the weights are quantized; None if they are plain, whatever is said.

    Of formats that surgeon knows these are the words of their codecs, of others names such as `nvfp4 of modelopt`.
    """
    unknown = unread_quantization(checkpoint)
    return "; ".join([*codec_words(checkpoint), *([unknown] if unknown is not None else [])]) or None


def codecs_of(checkpoint: Checkpoint) -> list[Codec]:
    """Return the codecs of the formats that the weights are stored in."""
    return list(dict.fromkeys(info.codec for info in checkpoint.tensors.values() if isinstance(info, Coded)))


def codec_words(checkpoint: Checkpoint) -> list[str]:
    """Return the kind of each codec that weights are stored by, and what it says of itself."""
    return [f"{codec.kind}: {codec.words}" for codec in codecs_of(checkpoint)]


def unread_quantization(checkpoint: Checkpoint) -> str | None:
    """Return how those weights are quantized that no codec knows."""
    kind, said = _by_tensors(checkpoint), said_quantizer(checkpoint)
    if kind is None:
        codes = (info for info in _plain(checkpoint).values() if len(info.shape) > 1 and is_code(info.dtype))
        return said if said is not None and any(codes) else None
    if said is None or said == kind:
        return kind
    if said in _BROAD:
        return f"{kind} of {said}"
    return said if said in kind else kind


def _plain(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    return {name: info for name, info in checkpoint.tensors.items() if not isinstance(info, Coded)}


def _by_tensors(checkpoint: Checkpoint) -> str | None:
    tensors = _plain(checkpoint)
    endings = {name.rpartition(".")[2]: name for name in tensors}
    if any(name.endswith(_BLOCKS) and name.removesuffix(_BLOCKS) + _SCALES in tensors for name in tensors):
        return "mxfp4"
    trace = next((ending for ending in _TRACES if ending in endings), None)
    if trace == "weight_scale":  # of a weight in which codes?
        weight = tensors.get(endings[trace].removesuffix("_scale"))
        return "int8" if weight is not None and weight.dtype == "I8" else "fp8"
    return None if trace is None else _TRACES[trace]


def said_quantizer(checkpoint: Checkpoint) -> str | None:
    """Return the quantizer that the config names, or the file beside it; of plain weights that is stale."""
    settings = quantizer_settings(checkpoint.config, checkpoint.folder)
    return str(settings.get("quant_method", "unknown")) if settings else None


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint with weights in a format that no codec knows; where transformers can undo it, say how.

    Raises:
        CheckpointError: there are such.
    """
    method = unread_quantization(checkpoint)
    if method is None:
        return
    remedy = "name the original repository"
    said = said_quantizer(checkpoint)
    undone = _LOADED_WITH.get(str(said)) if str(said) in method and "nvfp4" not in method else None
    if undone is not None:
        remedy = (
            f"load it in transformers with `quantization_config={undone}`, call "
            f"`save_pretrained(FOLDER, save_original_format=False)` and name that folder, or {remedy}"
        )
    elif method == "bitsandbytes" and said is not None:
        remedy = (
            "load it in transformers, call `model.dequantize()` and "
            f"`save_pretrained(FOLDER, save_original_format=False)` and name that folder, or {remedy}"
        )
    raise CheckpointError(
        f"{checkpoint.where}: the weights are quantized ({method}); surgeon needs the unquantized checkpoint: {remedy}"
    )


def notes_on(checkpoint: Checkpoint) -> list[str]:
    """Say where index or config differ from the weights without harm."""
    lines = list(checkpoint.notes)
    stale = said_quantizer(checkpoint)
    if stale is not None and quantization(checkpoint) is None:
        lines.append(
            f"the config says that the weights are quantized ({stale}), and they are not: taken as they are; take "
            "`quantization_config` out of config.json, or transformers will not load them so"
        )
    return lines


def remarks(checkpoint: Checkpoint) -> list[str]:
    """Say the same, and which weight files are not read."""
    unread = [name for name in checkpoint.left_out if name.endswith((".safetensors", ".index.json"))]
    lines = [*notes_on(checkpoint), *(f"{name}: {checkpoint.left_out[name]}" for name in unread)]
    return [f"{checkpoint.source.name}: {line}" for line in lines]


def plain_dtypes(checkpoint: Checkpoint) -> list[str]:
    """Return the dtypes that quantized tensors decode to, as recipes name them; empty if there are none."""
    dtypes = dict.fromkeys(info.dtype for info in checkpoint.tensors.values() if isinstance(info, Coded))
    return [_DTYPES.get(dtype, dtype) for dtype in dtypes]


def plain_tensors(checkpoint: Checkpoint, header: Header) -> list[TensorInfo]:
    """Return the logical tensors of a file's plain copy, wide dtypes first, so that all are aligned.

    A tensor is where its codes are; scales are nowhere.
    """
    tensors = [info for info in checkpoint.tensors.values() if parts_of(info)[0].path == header.path]
    return sorted(tensors, key=lambda info: -DTYPE_BITS[info.dtype])


def plain_start(checkpoint: Checkpoint, header: Header) -> bytes:
    """Return the length word and the header of a file's plain copy."""
    specs = [(info.name, info.dtype, info.shape) for info in plain_tensors(checkpoint, header)]
    return header_bytes(specs, header.metadata)


def written_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes of all weight files of a variant."""
    if not checkpoint.written_plain:
        return checkpoint.data_bytes
    starts = sum(len(plain_start(checkpoint, header)) for header in checkpoint.headers)
    return starts + sum(info.nbytes for info in checkpoint.tensors.values())


def plain_companions(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the files beside the weights that are others in a plain copy: a config without codes, a true index."""
    companions = {}
    if (checkpoint.folder / _CONFIG).is_file():
        config = read_object(checkpoint.folder / _CONFIG, unique=False)
        for part in (config, config.get("text_config")):
            if part is not None:
                for key in _SPEAKS_OF_CODES:
                    part.pop(key, None)
        companions[_CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    files = {header.path.name: plain_tensors(checkpoint, header) for header in checkpoint.headers}
    if checkpoint.index is not None or files.keys() != {SINGLE_NAME}:
        companions[checkpoint.index.name if checkpoint.index is not None else INDEX_NAME] = index_bytes(files)
    return companions
