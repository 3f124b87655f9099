"""How many tokens texts have, kept by all that decides it: a run that has nothing new to measure loads no tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import Fingerprint, library_versions, tokenizer_hashes
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.text.windows import beginning, tokenize

_VERSION = 2  # raise it when the same tokenizer would give other counts
_BEGUN = "begun"


class TokenCounts:
    """Counts tokens of texts with the tokenizer beside a checkpoint, which is only asked for what is not known yet."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Callable[[], Any]) -> None:
        self._tokenizer = cache(tokenizer)
        made = Fingerprint(
            version=_VERSION,
            model="",  # no weight has a say in it
            config=checkpoint.config,
            tokenizer=tokenizer_hashes(checkpoint.folder),
            libraries=library_versions(),
        )
        self._path = path_of("tokens", made.key(), ".json")
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
