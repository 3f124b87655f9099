"""The tokenizer that lies beside a checkpoint's weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from surgeon import foreign
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import is_tokenizers, vocabulary_kind
from surgeon.errors import CheckpointError, reason
from surgeon.memory import require_room, require_room_for_torch

# What transformers needs to read a vocabulary of each kind where there is no tokenizer.json.
_PACKAGES = {"sentencepiece": ("sentencepiece", "google.protobuf"), "tiktoken": ("tiktoken",)}
_INSTALLED_AS = {"google.protobuf": "protobuf"}


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer that lies beside the weights.

    Raises:
        CheckpointError: there is none, or transformers cannot read it; the message says all that it says.
    """
    require_room_for_torch()  # which transformers loads
    require_room("a tokenizer", 64 << 20, 64 << 20)
    try:
        return foreign.load_tokenizer(checkpoint.folder)
    except MemoryError:
        raise
    except foreign.ForeignCode as error:
        raise CheckpointError(
            f"{checkpoint.folder}: {error}, which surgeon does not run; put the files of a tokenizer of "
            "transformers' own there (tokenizer.json, and a tokenizer_config.json without auto_map)"
        ) from None
    except Exception as error:  # the readers of its files raise what they like, also bare `Exception`
        raise CheckpointError(_words(checkpoint.folder, error)) from None


def _words(folder: Path, error: Exception) -> str:
    """Say why there is no tokenizer, with a remedy where one is known: the library guesses at what is missing."""
    there = sorted(path for path in folder.iterdir() if path.is_file() and is_tokenizers(path.name))
    if not any(path.name != "tokenizer_config.json" for path in there):
        return f"{folder}: no tokenizer beside the weights; copy its files there, such as tokenizer.json"
    if not (folder / "tokenizer.json").is_file():
        for path in there:
            packages = _PACKAGES.get(vocabulary_kind(path) or "", ())
            missing = [package for package in packages if not _is_installed(package)]
            if missing:
                names = " ".join(_INSTALLED_AS.get(package, package) for package in packages)
                return (
                    f"{path}: transformers reads this vocabulary with packages that are not installed here; "
                    f"`pip install {names}`, or put a tokenizer.json beside it ({reason(error)})"
                )
    names = ", ".join(path.name for path in there)
    return f"{folder}: transformers makes no tokenizer of {names} ({reason(error)})"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
