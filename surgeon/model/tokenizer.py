"""The tokenizer that lies beside a checkpoint's weights: loading it, counting tokens, and ids that no model knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from surgeon import foreign
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import is_tokenizers, vocabulary_kind
from surgeon.checkpoint.fingerprint import Fingerprint, library_versions, tokenizer_hashes
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.errors import CheckpointError, InputError, reason
from surgeon.memory import require_room, require_room_for_torch
from surgeon.text.windows import beginning, tokenize

# What transformers needs to read a vocabulary of each kind where there is no tokenizer.json.
_PACKAGES = {"sentencepiece": ("sentencepiece", "google.protobuf"), "tiktoken": ("tiktoken",)}
_INSTALLED_AS = {"google.protobuf": "protobuf"}
_VERSION = 2  # of counts: raise it when the same tokenizer would give others
_BEGUN = "begun"


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
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_tokenizers(path.name))
    if not any(path.name != "tokenizer_config.json" for path in files):
        return f"{folder}: no tokenizer beside the weights; copy its files there, such as tokenizer.json"
    if not (folder / "tokenizer.json").is_file():
        for path in files:
            packages = _PACKAGES.get(vocabulary_kind(path) or "", ())
            missing = [package for package in packages if not _is_installed(package)]
            if missing:
                names = " ".join(_INSTALLED_AS.get(package, package) for package in packages)
                return (
                    f"{path}: transformers reads this vocabulary with packages that are not installed here; "
                    f"`pip install {names}`, or put a tokenizer.json beside it ({reason(error)})"
                )
    names = ", ".join(path.name for path in files)
    return f"{folder}: transformers makes no tokenizer of {names} ({reason(error)})"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


class TokenCounts:
    """Counts tokens of texts with the tokenizer beside a checkpoint; kept by all that decides how many there are.

    The tokenizer is only asked for what is not known yet: a run that has nothing new to measure loads none.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: Callable[[], Any]) -> None:
        self._tokenizer = cache(tokenizer)
        fingerprint = Fingerprint(
            version=_VERSION,
            model="",  # no weight has a say in it
            config=checkpoint.config,
            tokenizer=tokenizer_hashes(checkpoint.folder),
            libraries=library_versions(),
        )
        self._path = path_of("tokens", fingerprint.key(), ".json")
        self._kept: dict[str, int] = recall(self._path) or {}
        self._known: dict[str, int] = dict(self._kept)

    def begun(self) -> int:
        """Return how many special tokens the tokenizer begins a text with."""
        if _BEGUN not in self._known:
            self._known[_BEGUN] = len(beginning(self._tokenizer()))
        return self._known[_BEGUN]

    def count(self, text: str) -> int:
        """Return how many tokens a text has, special tokens not counted."""
        key = sha256(text.encode("utf-8", "surrogatepass"))
        if key not in self._known:
            self._known[key] = len(tokenize(self._tokenizer(), text).ids)
        return self._known[key]

    def keep(self) -> None:
        """Write down what was counted, for the next run."""
        if self._known != self._kept:
            remember(self._path, self._known)
            self._kept = dict(self._known)


def check_ids(model: Any, tokenizer: Any, sequences: Iterable[Sequence[int]]) -> None:
    """Make sure that a model has an embedding, and an output, for each token id.

    Raises:
        InputError: it has none for some.
    """
    _refuse_beyond(model, tokenizer, max((max(ids) for ids in sequences if ids), default=0))


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Make sure of it for all that a tokenizer can make of plain text, before there is any.

    Tokens that were added to its vocabulary, such as one for a picture, may have ids beyond: no text holds them.

    Raises:
        InputError: the model has no embedding for some.
    """
    added = tokenizer.get_added_vocab()
    own = (number for token, number in tokenizer.get_vocab().items() if token not in added)
    _refuse_beyond(model, tokenizer, max(own, default=0))


def _refuse_beyond(model: Any, tokenizer: Any, highest: int) -> None:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = min(int(end.weight.shape[0]) for end in ends if getattr(end, "weight", None) is not None)
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise InputError(
            f"the tokenizer gives the token id {highest} ({token!r}), but the model has embeddings for {rows} ids only"
            ": take the tokenizer that belongs to it"
        )
