"""How many tokens texts have, kept by all that decides it: a run that has nothing new to measure loads no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import Fingerprint, library_versions, tokenizer_hashes
from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.plain_json import read_object
from surgeon.checkpoint.sealed import is_sealed, seal
from surgeon.checkpoint.sources import cache_folder
from surgeon.checkpoint.storage import replacing
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
        self._path = cache_folder() / "tokens" / f"{made.key()[:32]}.json"
        self._kept: dict[str, int] = read_object(self._path) if is_sealed(self._path) else {}
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
            with replacing(self._path) as part:
                part.write_text(json.dumps(self._known, indent=0), encoding="ascii")
            seal(self._path)
            self._kept = dict(self._known)
