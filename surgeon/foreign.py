"""The one place where libraries are asked for models, tokenizers and rows of strangers: as data, never with their code.

Left to itself transformers asks on stdin whether to run the code that a repository brings, and a pipe may answer.
Every request goes through here, where the answer is no; a test walks the package for requests elsewhere. What
transformers has itself is loaded without such code, whatever a repository says beside it.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# How attention and experts are computed does not change what is computed. Of other names that a config may give, one
# of the form org/name has code fetched and run, and the rest need packages that may not be here.
_OWN_ATTENTION = ("eager", "sdpa")
_OWN_EXPERTS = ("eager", "batched_mm", "grouped_mm")


class ForeignCode(ValueError):
    """Only code inside the repository could read it."""


def load_config(folder: Path) -> Any:
    """Return the config of a checkpoint, as transformers reads it.

    Raises:
        ForeignCode: its architecture is code inside the repository.
        Exception: whatever transformers makes of a damaged one.
    """
    import torch
    import transformers

    settings, _ = transformers.PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    if settings.get("auto_map") and settings.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ForeignCode("the architecture is code inside the repository")
    # The dtype is the caller's to choose, whatever the config says of it: `auto` from a script is no dtype of torch.
    config = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True, dtype=torch.float32
    )
    for part in _parts(config):
        if part._attn_implementation not in _OWN_ATTENTION:
            part._attn_implementation = None
        if part._experts_implementation not in _OWN_EXPERTS:
            part._experts_implementation = None
    return config


def _parts(config: Any) -> list[Any]:
    """Return a config and all that lie inside it, innermost first, since what is set of one is set of its parts."""
    inner = [getattr(config, name, None) for name in config.sub_configs]
    return [part for one in inner if one is not None for part in _parts(one)] + [config]


def model_classes(config: Any) -> list[tuple[Any, Any]]:
    """Return what transformers has for a config: a causal language model first, then one that reads images and text.

    Each as the auto class that builds it, and its own class.
    """
    import transformers

    kinds = (
        (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        (transformers.AutoModelForImageTextToText, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    )
    return [(auto, mapping[type(config)]) for auto, mapping in kinds if type(config) in mapping]


def build_model(config: Any, dtype: Any, auto: Any) -> Any:
    """Build the model that one of transformers' auto classes has for a config, initialized as transformers does it.

    Raises:
        Exception: whatever transformers makes of a config that describes none.
    """
    return auto.from_config(config, dtype=dtype, trust_remote_code=False)


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint, as transformers reads it.

    Raises:
        ForeignCode: it is code inside the repository.
        Exception: whatever transformers makes of files that are missing or damaged.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except ValueError as error:
        if "trust_remote_code" in str(error):  # its one sign that it would have asked
            raise ForeignCode("the tokenizer is code inside the repository") from None
        raise


def load_generation_config(folder: Path) -> Any:
    """Return the settings of generation that lie beside a checkpoint, as transformers reads them.

    Raises:
        Exception: whatever transformers makes of a damaged file.
    """
    import transformers

    return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def dataset_rows(builder: str, path: str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one file, here or at an `hf://` address, as they arrive.

    Nothing but that file is read: pictures and sounds, which a file may say lie at any address, stay what the file
    holds of them.

    Raises:
        Exception: whatever the library makes of damage.
    """
    import datasets

    files = {"rows": [glob.escape(path)]}  # a name, and no pattern of names
    stream = datasets.load_dataset(builder, data_files=files, split="rows", streaming=True, **options)
    for table in stream.with_format("arrow").iter(batch_size=32):
        yield from table.to_pylist()
