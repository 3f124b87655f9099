"""Scores on disk: one safetensors file per language, float32, named by all that they were computed from.

A second recipe on the same model, texts and settings finds its scores here. Beside each file stands its SHA-256, so
that a damaged one is made again and not believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import Fingerprint, content_hash, is_sealed, library_versions, tokenizer_hashes
from surgeon.checkpoint.storage import TensorInfo, allocate_file, map_bytes, read_header, view
from surgeon.checkpoint.store import path_of
from surgeon.scores.base import SampledScore

SCORE_VERSION = 4  # raise it when the same settings would give other scores
_FORMAT_VERSION = "3"  # of the files


@dataclass(frozen=True)
class ScoreFile:
    """The scores of one language: float32, non-negative, in the tensors' shapes."""

    path: Path
    language: str

    def reader(self) -> Callable[[str], NDArray[np.float32]]:
        """Return a function from tensor name to its scores, a read-only view of the mapped file."""
        header, data = read_header(self.path), map_bytes(self.path)
        return lambda name: view(data, header.tensors[name])


def score_path(
    checkpoint: Checkpoint,
    tensors: Sequence[TensorInfo],
    text_hash: str,
    score: SampledScore,
    precision: str,
    jobs: int,
    device: str = "cpu",
) -> Path:
    """Name the score file by the fingerprint of all that goes into it."""
    made = Fingerprint(
        version=SCORE_VERSION,
        model=content_hash(checkpoint, jobs),
        config=checkpoint.config,
        tokenizer=tokenizer_hashes(checkpoint.folder),
        text=text_hash,
        settings={**score.settings, "precision": precision},
        tensors=tuple(info.name for info in tensors),
        device=device.partition(":")[0],
        libraries=library_versions(),
    )
    return path_of("scores", made.key(), ".safetensors")


def load_score(path: Path, language: str) -> ScoreFile | None:
    """Return a cached score, or None if it has not been computed, or is not as it was when it was."""
    return ScoreFile(path, language) if is_sealed(path) else None


def allocate_score(path: Path, tensors: Sequence[TensorInfo], language: str) -> None:
    """Make a score file of zeros, its blocks reserved; `writable` maps it."""
    metadata = {"format": "surgeon-score", "format_version": _FORMAT_VERSION, "language": language}
    allocate_file(path, [(info.name, "F32", info.shape) for info in tensors], metadata)


def writable(path: Path) -> Mapping[str, NDArray[np.float32]]:
    """Map a score file so that what is written to its tensors reaches the file."""
    header, data = read_header(path), map_bytes(path, "shared")
    return {name: view(data, info) for name, info in header.tensors.items()}
