"""Perplexity per language, of a model as it is and with a variant's edits poked into it.

Token-weighted: exp(sum of negative log-likelihoods / number of predicted tokens), sums in float64. Bits per
byte stand beside it, because perplexities of models with different tokenizers do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from surgeon.checkpoint.ties import stored_copies
from surgeon.errors import CheckpointError, InputError
from surgeon.model.model import LoadedModel
from surgeon.operations import Operation
from surgeon.operations.edits import edited_indices, make_edit, touched_tensors
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.region.region import Indices, Region
from surgeon.text.corpora import Corpus
from surgeon.text.windows import Window, bos_token, evaluation_windows, tokenize


@dataclass(frozen=True)
class Measure:
    """`nll` is the sum of negative log-likelihoods in nats over `tokens` tokens, which are `bytes` of text.

    `windows` has both window by window, in the order of the text.
    """

    nll: float
    tokens: int
    bytes: int
    windows: tuple[tuple[float, int], ...] = ()

    @property
    def log_perplexity(self) -> float:
        """Nats per token; the perplexity's logarithm, finite where the perplexity overflows."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token); inf where that overflows."""
        try:
            return math.exp(self.log_perplexity)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per byte of text."""
        return self.nll / math.log(2) / self.bytes


@dataclass(frozen=True)
class EvaluationText:
    """One language's windows, and the bytes of text whose tokens they predict."""

    windows: tuple[Window, ...]
    bytes: int


def evaluation_texts(
    loaded: LoadedModel, corpus: Corpus, languages: Sequence[str], spec: VerifySpec
) -> dict[str, EvaluationText]:
    """Tokenize the evaluation half of each language.

    Raises:
        InputError: a text gives no token that could be predicted.
    """
    bos = bos_token(loaded.tokenizer)
    result = {}
    for language in languages:
        tokens = tokenize(loaded.tokenizer, corpus.text(language).evaluate)
        windows, size = evaluation_windows(tokens, bos, spec.tokens, spec.window, spec.stride or spec.window)
        if not windows:
            raise InputError(f"the text for '{language}' is too short to evaluate on: it has no token to predict")
        result[language] = EvaluationText(tuple(windows), size)
    return result


def measure(loaded: LoadedModel, text: EvaluationText, batch_size: int) -> Measure:
    """Measure one language; the sum of a broken model may be inf or nan and is returned as it is."""
    import torch

    windows: list[tuple[float, int]] = []
    for start in range(0, len(text.windows), batch_size):
        batch = text.windows[start : start + batch_size]
        width = max(len(window.inputs) for window in batch)
        # Padding stands to the right, where causal attention cannot see it from a counted position.
        inputs = torch.tensor([window.inputs + (0,) * (width - len(window.inputs)) for window in batch])
        with torch.inference_mode():
            logits = loaded.model(input_ids=inputs.to(loaded.device), use_cache=False).logits
            for row, window in enumerate(batch):
                stop = len(window.inputs)
                counted = logits[row, stop - len(window.labels) : stop].float()
                labels = torch.tensor(window.labels, device=counted.device)
                losses = torch.nn.functional.cross_entropy(counted, labels, reduction="none")
                windows.append((float(losses.double().sum()), len(window.labels)))
    total, tokens = sum(nll for nll, _ in windows), sum(count for _, count in windows)
    return Measure(total, tokens, text.bytes, tuple(windows))


@contextmanager
def edited(loaded: LoadedModel, operations: Sequence[Operation], regions: Mapping[str, Region]) -> Iterator[None]:
    """Poke a variant's edits into the loaded model, and put the source's values back at the end.

    The source's values come from the mapped file, so only indices are kept meanwhile.
    """
    import torch

    from surgeon.checkpoint.tensors import as_tensor

    named = _editable(loaded, operations, regions)

    def poke(name: str, indices: Indices, values: NDArray[Any]) -> None:
        parameter = loaded.parameters[name].values()
        at = torch.from_numpy(indices).to(parameter.device)
        parameter.view(-1)[at] = as_tensor(values).to(parameter.device, parameter.dtype)

    try:
        for name in named:
            edit = make_edit(loaded.checkpoint, name, operations, regions)
            poke(name, edit.indices, edit.values)
        yield
    finally:
        for name in named:
            indices = edited_indices(loaded.checkpoint, name, operations, regions)
            poke(name, indices, loaded.checkpoint.array(name).reshape(-1)[indices])


def _editable(loaded: LoadedModel, operations: Sequence[Operation], regions: Mapping[str, Region]) -> list[str]:
    """Return the tensors to edit by the name under which the model holds them, tied copies once."""
    result: dict[str, None] = {}
    for name in touched_tensors(loaded.checkpoint, operations, regions):
        held = [alias for alias in stored_copies(loaded.checkpoint.ties, name) if alias in loaded.parameters]
        if not held:
            raise CheckpointError(
                f"tensor '{name}' is not a parameter of {type(loaded.model).__name__} as transformers builds it, so "
                "the variant cannot be measured in memory: exclude it, or write the variant and `surgeon verify` it"
            )
        result[held[0]] = None
    return list(result)


def measure_languages(
    loaded: LoadedModel, texts: Mapping[str, EvaluationText], batch_size: int, label: str, progress: Progress
) -> dict[str, Measure]:
    """Measure all languages of one model."""
    result = {}
    with progress.task(f"perplexity of {label}", len(texts)) as advance:
        for language, text in texts.items():
            result[language] = measure(loaded, text, batch_size)
            advance(1)
    return result


def geometric_mean(measures: Mapping[str, Measure]) -> float:
    """Return the mean of the log-perplexities (the logarithm of the geometric mean perplexity), in nats."""
    return math.fsum(m.log_perplexity for m in measures.values()) / len(measures)
