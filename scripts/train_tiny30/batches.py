"""Training batches and validation windows from the token files."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from safetensors.numpy import load_file

CORPUS = "corpus"
DECLARATION = "declaration"


class TokenFiles:
    """The token arrays of one split, by source and language."""

    def __init__(self, path: Path, split: str) -> None:
        arrays = load_file(path)
        self.arrays: dict[str, dict[str, numpy.ndarray]] = {
            source: {
                name.rsplit("/", 1)[1]: array
                for name, array in sorted(arrays.items())
                if name.startswith(f"{split}/{source}/") and len(array) > 1
            }
            for source in (CORPUS, DECLARATION)
        }


class Sampler:
    """Draws random windows; a language's share of the corpus is its number of tokens to the power `balance`."""

    def __init__(self, files: TokenFiles, length: int, boundary: int, balance: float, seed: int) -> None:
        self.files = files
        self.length = length
        self.boundary = boundary
        self.random = numpy.random.default_rng(seed)
        self.shares: dict[str, numpy.ndarray] = {}
        for source, exponent in ((CORPUS, balance), (DECLARATION, 0.0)):
            sizes = numpy.array([len(array) for array in files.arrays[source].values()], dtype=numpy.float64)
            self.shares[source] = sizes**exponent / (sizes**exponent).sum()

    def batch(self, count: int, declaration_share: float) -> torch.Tensor:
        """Return `count` windows of `length + 1` tokens, about `declaration_share` of them from the declaration."""
        return torch.from_numpy(numpy.stack([self._window(declaration_share) for _ in range(count)]))

    def _window(self, declaration_share: float) -> numpy.ndarray:
        """Draw one window of one language; half of the windows begin with the boundary token."""
        source = DECLARATION if self.random.random() < declaration_share else CORPUS
        arrays = list(self.files.arrays[source].values())
        array = arrays[self.random.choice(len(arrays), p=self.shares[source])]
        start = self.random.integers(0, len(array) - self.length)
        window = array[start : start + self.length + 1].astype(numpy.int64)
        if self.random.random() < 0.5:
            window[0] = self.boundary
        return window


def first_windows(files: TokenFiles, source: str, length: int) -> dict[str, torch.Tensor]:
    """Return the first window (at most `length + 1` tokens) of every language, for validation."""
    return {
        language: torch.from_numpy(array[: length + 1].astype(numpy.int64))
        for language, array in files.arrays[source].items()
    }
