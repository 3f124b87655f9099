"""Measure a checkpoint: perplexity per language, and what zeroing the core or the controls does to it.

    python measure.py CHECKPOINT --texts ../../surgeon/assets/udhr30 [--half eval] [--output FIGURES.json]

Plain code on purpose: it depends on nothing of the toolkit, so that the two can be compared.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

SCORING_LANGUAGES = ("ar", "es", "ru", "zh", "ko", "vi")
WINDOW = 256
TOKENS = 512
SEQUENCES = 64
Windows = dict[str, list[torch.Tensor]]
Indices = dict[str, torch.Tensor]


def cut_windows(tokenizer: PreTrainedTokenizerBase, folder: Path, languages: list[str], tokens: int) -> Windows:
    """Cut the first tokens of each language's text into windows without overlap; no boundary token is put in front."""
    windows = {}
    for language in languages:
        text = (folder / f"{language}.txt").read_text(encoding="utf-8")
        numbers = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens])
        windows[language] = [window for window in numbers.split(WINDOW) if len(window) > 1]
    return windows


@torch.no_grad()
def negative_log_likelihood(model: PreTrainedModel, windows: Windows) -> dict[str, tuple[float, int]]:
    """Return per language the sum of negative log-likelihoods and the number of predicted tokens."""
    result = {}
    for language, pieces in windows.items():
        total, count = 0.0, 0
        for window in pieces:
            logits = model(input_ids=window[None, :-1]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").double().sum().item()
            count += len(window) - 1
        result[language] = (total, count)
    return result


def geometric_mean(losses: dict[str, tuple[float, int]]) -> float:
    """Geometric mean over the languages of the token-weighted perplexity."""
    return math.exp(sum(total / count for total, count in losses.values()) / len(losses))


def importance(model: PreTrainedModel, windows: Windows) -> Indices:
    """Sum over the languages of |theta * sum of gradients|, for every parameter inside the decoder layers."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if "layers." in name}
    scores = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for pieces in windows.values():
        model.zero_grad()
        for window in pieces:
            model(input_ids=window[None], labels=window[None]).loss.backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            scores[name] += (parameter.detach() * parameter.grad).abs()
    model.zero_grad()
    return scores


def extreme(scores: Indices, fraction: float, largest: bool, matrices_only: bool) -> Indices:
    """Per tensor, the `int(fraction * numel)` flat indices of extreme score; ties go to the lower index."""
    return {
        name: torch.sort(score.flatten(), descending=largest, stable=True).indices[: int(fraction * score.numel())]
        for name, score in scores.items()
        if not (matrices_only and score.ndim == 1)
    }


def chance(scores: Indices, fraction: float, seed: int) -> Indices:
    """Per matrix, `int(fraction * numel)` flat indices at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(score.numel(), generator=generator)[: int(fraction * score.numel())]
        for name, score in scores.items()
        if score.ndim > 1
    }


@contextmanager
def zeroed(model: PreTrainedModel, indices: Indices) -> Iterator[None]:
    """Set the entries to zero, and put them back afterwards."""
    parameters = dict(model.named_parameters())
    saved = {name: parameters[name].detach().flatten()[places].clone() for name, places in indices.items()}
    for name, places in indices.items():
        parameters[name].data.view(-1)[places] = 0.0
    try:
        yield
    finally:
        for name, places in indices.items():
            parameters[name].data.view(-1)[places] = saved[name]


def cuts(scores: Indices) -> dict[str, Callable[[], Indices]]:
    """Name the cuts that are measured."""
    return {
        "top 1 %": lambda: extreme(scores, 0.01, True, False),
        "top 3 %": lambda: extreme(scores, 0.03, True, False),
        "top 5 %": lambda: extreme(scores, 0.05, True, False),
        "top 1 %, matrices only": lambda: extreme(scores, 0.01, True, True),
        "top 5 %, matrices only": lambda: extreme(scores, 0.05, True, True),
        "bottom 1 %, matrices only": lambda: extreme(scores, 0.01, False, True),
        "random 1 %, matrices only": lambda: chance(scores, 0.01, 0),
    }


def measure(checkpoint: Path, texts: Path, half: str) -> dict[str, object]:
    """Return all figures of one checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    languages = sorted(path.stem for path in (texts / half).glob("*.txt"))
    windows = cut_windows(tokenizer, texts / half, languages, TOKENS)
    base = negative_log_likelihood(model, windows)
    per_language = {}
    for language, (total, count) in base.items():
        # In a byte-level vocabulary every character of a token's written form stands for one byte.
        pieces = [tokenizer.convert_ids_to_tokens(window[1:].tolist()) for window in windows[language]]
        size = sum(len(token) for piece in pieces for token in piece)
        per_language[language] = {"perplexity": math.exp(total / count), "bits_per_byte": total / math.log(2) / size}
    sample = cut_windows(tokenizer, texts / "score", list(SCORING_LANGUAGES), SEQUENCES * WINDOW)
    scores = importance(model, sample)
    ratios = {}
    for name, choose in cuts(scores).items():
        with zeroed(model, choose()):
            ratios[name] = geometric_mean(negative_log_likelihood(model, windows)) / geometric_mean(base)
    mean_bits = sum(figures["bits_per_byte"] for figures in per_language.values()) / len(per_language)
    return {
        "half": half,
        "perplexity": geometric_mean(base),
        "bits_per_byte": mean_bits,
        "ratios": ratios,
        "languages": per_language,
    }


def main() -> None:
    """Parse the arguments, measure, print and perhaps write the figures."""
    parser = argparse.ArgumentParser(description="Measure perplexity and cuts of a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--texts", type=Path, required=True, help="folder with score/ and eval/")
    parser.add_argument("--half", choices=("eval", "score"), default="eval", help="half to measure perplexity on")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    figures = json.dumps(measure(arguments.checkpoint, arguments.texts, arguments.half), indent=2)
    print(figures)
    if arguments.output:
        arguments.output.write_text(figures + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
