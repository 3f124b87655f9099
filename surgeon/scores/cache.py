"""Scores on disk: one safetensors file per language, float32, named by the content it was computed from.

A second recipe on the same model, texts and settings finds its scores here; a killed run keeps the languages
that it finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import Fingerprint, content_hash, library_versions, tokenizer_hashes
from surgeon.checkpoint.sources import cache_folder
from surgeon.checkpoint.storage import TensorInfo, allocate_file, map_bytes, read_header, replacing, view
from surgeon.errors import InputError
from surgeon.model.model import LoadedModel
from surgeon.scores.grad_param import Reduction
from surgeon.text.windows import bos_token, scoring_sequences, tokenize

SCORE_VERSION = 1  # raise it when the same settings would give other scores


@dataclass(frozen=True)
class ScoreSettings:
    """Everything a score depends on beside the model and the text; with a `reduction` it is grad_param, else wanda."""

    samples: int
    sequence_length: int
    batch_size: int
    reduction: Reduction | None
    precision: str


@dataclass(frozen=True)
class ScoreFile:
    """The scores of one language: float32, non-negative, in the tensors' shapes; and the sample's size."""

    path: Path
    language: str
    sequences: int
    tokens: int

    def reader(self) -> Callable[[str], NDArray[np.float32]]:
        """Return a function from tensor name to its scores, a read-only view of the mapped file."""
        header, data = read_header(self.path), map_bytes(self.path)
        return lambda name: view(data, header.tensors[name])


def score_path(
    checkpoint: Checkpoint,
    tensors: Sequence[TensorInfo],
    text_hash: str,
    settings: ScoreSettings,
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
        settings=asdict(settings),
        tensors=tuple(info.name for info in tensors),
        device=device.partition(":")[0],
        libraries=library_versions(),
    )
    return cache_folder() / "scores" / f"{made.key()[:32]}.safetensors"


def load_score(path: Path, language: str) -> ScoreFile | None:
    """Return a cached score, or None if it has not been computed."""
    if not path.is_file():
        return None
    metadata = read_header(path).metadata
    return ScoreFile(path, language, int(metadata["sequences"]), int(metadata["tokens"]))


def compute_score(
    path: Path,
    loaded: LoadedModel,
    tensors: Sequence[TensorInfo],
    language: str,
    text: str,
    settings: ScoreSettings,
    advance: Callable[[int], None],
) -> ScoreFile:
    """Score one language into `path`, which appears only when complete.

    Raises:
        InputError: the text gives no sequence, a tensor is no parameter of the model, or the model is broken.
    """
    from surgeon.checkpoint.tensors import as_tensor
    from surgeon.scores import grad_param, wanda  # torch is imported where it is needed

    sequences = scoring_sequences(
        tokenize(loaded.tokenizer, text), bos_token(loaded.tokenizer), settings.samples, settings.sequence_length
    )
    sequences = [sequence for sequence in sequences if len(sequence) > 1]
    if not sequences:
        raise InputError(f"the text for '{language}' is too short to score on: it gives no sequence of two tokens")
    absent = [info.name for info in tensors if info.name not in loaded.parameters]
    if absent:
        raise InputError(
            f"tensor '{absent[0]}' is not a parameter of {type(loaded.model).__name__} as transformers builds it "
            f"({len(absent)} such tensors): exclude it, or use a region from a file"
        )
    metadata = {
        "format": "surgeon-score",
        "format_version": str(SCORE_VERSION),
        "language": language,
        "sequences": str(len(sequences)),
        "tokens": str(sum(len(sequence) - 1 for sequence in sequences)),
    }
    with replacing(path) as staged:
        header = allocate_file(staged, [(info.name, "F32", info.shape) for info in tensors], metadata)
        data = map_bytes(staged, "shared")
        sums: Mapping[str, Any] = {name: as_tensor(view(data, info)) for name, info in header.tensors.items()}
        slots = {info.name: loaded.parameters[info.name] for info in tensors}
        if settings.reduction is None:
            wanda.accumulate(loaded.model, slots, sums, sequences, settings.batch_size, advance)
        else:
            grad_param.accumulate(
                loaded.model, slots, sums, sequences, settings.batch_size, settings.reduction, advance
            )
    return ScoreFile(path, language, len(sequences), int(metadata["tokens"]))
