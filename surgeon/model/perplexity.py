"""Perplexity per language of a base and its variants, all of them in one pass through the layers.

Token-weighted: exp(sum of negative log-likelihoods / number of predicted tokens), sums in float64. Bits per
byte stand beside it, because perplexities of models with different tokenizers do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from surgeon.errors import InputError
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack
from surgeon.model.results import Measure
from surgeon.model.variant_pass import run_models, work
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.team import ALONE, Team
from surgeon.text.corpora import Corpus
from surgeon.text.windows import Window, beginning, evaluation_windows, tokenize

_UNCOUNTED = -100  # in place of a label: the output there is not counted


@dataclass(frozen=True)
class EvaluationText:
    """One language's windows, and the bytes of text whose tokens they predict."""

    windows: tuple[Window, ...]
    bytes: int


def evaluation_texts(
    tokenizer: Any, corpus: Corpus, languages: Sequence[str], spec: VerifySpec
) -> dict[str, EvaluationText]:
    """Tokenize the evaluation half of each language.

    Raises:
        InputError: a text gives no token that could be predicted, or a window has no room for any.
    """
    begin = beginning(tokenizer)
    result = {}
    for language in languages:
        tokens = tokenize(tokenizer, corpus.text(language).evaluate)
        windows, size = evaluation_windows(tokens, begin, spec.tokens, spec.window, spec.stride or spec.window)
        if not windows:
            raise InputError(f"the text for '{language}' is too short to evaluate on: it has no token to predict")
        result[language] = EvaluationText(tuple(windows), size)
    return result


@dataclass(frozen=True)
class _Batch:
    """Some windows of a language: inputs and labels of shape (windows, tokens), labels where outputs are counted."""

    language: str
    inputs: torch.Tensor
    labels: torch.Tensor


def measure_variants(
    stack: Stack,
    variants: Sequence[Variant],
    texts: Mapping[str, EvaluationText],
    batch_size: int,
    progress: Progress,
    team: Team = ALONE,
) -> dict[str, dict[str, Measure]]:
    """Measure each variant on each language; the sum of a broken model may be inf or nan and is returned as it is.

    Each of a team measures some of the batches; where what they found does not come, nothing is returned.
    """
    every = _batches(texts, batch_size)

    def measured(share: Sequence[tuple[int, _Batch]]) -> dict[int, list[torch.Tensor]]:
        found = _sums(stack, variants, [batch for _, batch in share], progress)
        return {number: sums for (number, _), sums in zip(share, found, strict=True)}

    found: dict[int, list[torch.Tensor]] = {}
    for of_share in team.map(measured, team.divided(list(enumerate(every)))):
        found |= of_share
    return {
        variant.name: {
            language: _measure(language, text, every, [found[number][i] for number in range(len(every))])
            for language, text in texts.items()
        }
        for i, variant in enumerate(variants if found else ())
    }


def _sums(
    stack: Stack, variants: Sequence[Variant], batches: Sequence[_Batch], progress: Progress
) -> list[list[torch.Tensor]]:
    """Return, by batch and variant, the negative log-likelihood of each window, float64."""
    sums = [[torch.zeros(len(batch.inputs), dtype=torch.float64) for _ in variants] for batch in batches]

    def take(variant: int, number: int, rows: slice, positions: slice, logits: torch.Tensor) -> None:
        labels = batches[number].labels[rows, positions].to(logits.device)
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=_UNCOUNTED
        )
        sums[number][variant][rows] += losses.double().view(labels.shape).sum(dim=1).cpu()

    def wanted(number: int, rows: slice, positions: slice) -> bool:
        return bool((batches[number].labels[rows, positions] != _UNCOUNTED).any())

    label = f"perplexity of {len(variants)} models" if len(variants) > 1 else f"perplexity of {variants[0].name}"
    with progress.task(label, work(stack, variants, len(batches))) as advance:
        inputs = [batch.inputs for batch in batches]
        run_models(stack, variants, inputs, take, wanted=wanted, advance=advance)
    return sums


def measure_loaded(model: Any, texts: Mapping[str, EvaluationText], batch_size: int) -> dict[str, Measure]:
    """Measure a transformers model as it is in memory, on its own device and in its own arithmetic."""
    batches = _batches(texts, batch_size)
    device = model.get_input_embeddings().weight.device
    sums = []
    for batch in batches:
        logits = model(input_ids=batch.inputs.to(device), use_cache=False).logits
        labels = batch.labels.to(logits.device)
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=_UNCOUNTED
        )
        sums.append(losses.double().view(labels.shape).sum(dim=1).cpu())
    return {language: _measure(language, text, batches, sums) for language, text in texts.items()}


def _batches(texts: Mapping[str, EvaluationText], batch_size: int) -> list[_Batch]:
    """Cut each language's windows into batches of one length, in their order.

    Nothing is padded, as not every attention is blind to what follows.
    """
    return [
        _batch(language, alike[start : start + batch_size])
        for language, text in texts.items()
        for alike in (list(group) for _, group in groupby(text.windows, lambda window: len(window.inputs)))
        for start in range(0, len(alike), batch_size)
    ]


def _batch(language: str, windows: Sequence[Window]) -> _Batch:
    inputs = torch.tensor([window.inputs for window in windows], dtype=torch.long)
    labels = torch.full_like(inputs, _UNCOUNTED)
    for row, window in enumerate(windows):
        labels[row, len(window.inputs) - len(window.labels) :] = torch.tensor(window.labels)
    return _Batch(language, inputs, labels)


def _measure(language: str, text: EvaluationText, batches: Sequence[_Batch], sums: Sequence[torch.Tensor]) -> Measure:
    nlls = [
        float(nll)
        for batch, of_batch in zip(batches, sums, strict=True)
        if batch.language == language
        for nll in of_batch
    ]
    counts = [len(window.labels) for window in text.windows]
    total = 0.0
    for nll in nlls:
        total += nll
    return Measure(total, sum(counts), text.bytes, tuple(zip(nlls, counts, strict=True)))
