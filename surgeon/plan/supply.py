"""Is there enough text? Told of all languages at once, before anything is scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from surgeon.errors import InputError
from surgeon.plan.plan import Plan
from surgeon.recipe.schema import SampledScore, VerifySpec
from surgeon.text.corpora import Text
from surgeon.text.windows import Tokens, bos_token, scoring_sequences, tokenize


def check_supply(plan: Plan, tokenizer: Any) -> list[str]:
    """Read and tokenize every text that the plan needs; returns a line for each purpose that some run short of.

    Raises:
        InputError: texts are missing, damaged, or give not even one token to predict; all of them at once.
        EnvironmentFailure: a dataset cannot be reached.
    """
    problems: list[str] = []
    texts = _read(plan, problems)
    notes = []
    bos = bos_token(tokenizer)
    for spec in _on_text(plan):
        short = list(_short_to_score(spec, tokenizer, bos, texts, problems))
        if short:
            notes.append(
                f"scored on fewer than {spec.samples} sequences of {spec.sequence_length} tokens, "
                f"since the text is short: {', '.join(short)}"
            )
    if plan.recipe.verify is not None:
        verified = {language: texts[language] for language in plan.verify_languages if language in texts}
        short = list(_short_to_verify(plan.recipe.verify, tokenizer, bos, verified, problems))
        if short:
            tokens = plan.recipe.verify.tokens
            notes.append(f"measured on fewer than {tokens} tokens, since the text is short: " + ", ".join(short))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return notes


def needs_text(plan: Plan) -> bool:
    """True if the model is to be scored or measured on text."""
    return bool(_on_text(plan)) or plan.recipe.verify is not None


def _on_text(plan: Plan) -> list[SampledScore]:
    return [spec for spec in plan.scores() if isinstance(spec, SampledScore)]


def _read(plan: Plan, problems: list[str]) -> dict[str, Text]:
    languages = [language for spec in _on_text(plan) for language in spec.languages]
    texts = {}
    for language in dict.fromkeys([*languages, *plan.verify_languages]):
        try:
            texts[language] = plan.corpus.text(language)
        except InputError as error:
            problems.append(str(error))
    return texts


def _short_to_score(
    spec: SampledScore, tokenizer: Any, bos: int | None, texts: dict[str, Text], problems: list[str]
) -> Iterator[str]:
    step = spec.sequence_length - (bos is not None)
    for language in dict.fromkeys(spec.languages):
        if language not in texts:
            continue
        tokens = tokenize(tokenizer, texts[language].score)
        sequences = scoring_sequences(tokens, bos, spec.samples, spec.sequence_length)
        if not any(len(sequence) > 1 for sequence in sequences):
            problems.append(_too_short(language, "score on", tokens))
        elif len(tokens.ids) < spec.samples * step:
            full = len(sequences) if len(tokens.ids) >= step else 0
            yield f"{language} {full} ({len(tokens.ids):,} tokens; {spec.samples * step:,} needed)"


def _short_to_verify(
    spec: VerifySpec, tokenizer: Any, bos: int | None, texts: dict[str, Text], problems: list[str]
) -> Iterator[str]:
    for language, text in texts.items():
        tokens = tokenize(tokenizer, text.evaluate)
        predicted = len(tokens.ids) - (bos is None)
        if predicted < 1:
            problems.append(_too_short(language, "evaluate on", tokens))
        elif predicted < spec.tokens:
            yield f"{language} {predicted:,}"


def _too_short(language: str, purpose: str, tokens: Tokens) -> str:
    return (
        f"the text for '{language}' is too short to {purpose}: it has {len(tokens.ids)} token(s), and at least one "
        "must be predicted from another"
    )
