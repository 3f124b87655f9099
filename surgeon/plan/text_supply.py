"""Is there enough text? Told of all languages at once, before anything is scored."""

from __future__ import annotations

from collections.abc import Iterator

from surgeon.errors import InputError
from surgeon.model.results import FEWEST_TOKENS
from surgeon.model.tokenizer import TokenCounts
from surgeon.plan.plan import Plan
from surgeon.plan.texts import needed_languages
from surgeon.recipe.schema import VerifySpec
from surgeon.scores.base import SampledScore
from surgeon.text.corpora import Text
from surgeon.text.windows import new_tokens, no_room, predicted, sentence_ends


def check_supply(plan: Plan, tokens: TokenCounts) -> list[str]:
    """Read every text that the plan needs and count its tokens; returns a line for each purpose that some run short of.

    Raises:
        InputError: texts are missing, damaged, or give not even one token to predict; all of them at once.
        EnvironmentFailure: a dataset cannot be reached.
    """
    problems: list[str] = []
    texts = _read(plan, problems)
    notes = []
    for spec in plan.sampled_scores():
        short = list(_short_to_score(spec, tokens, texts, problems))
        if short and "samples" in spec.model_fields_set:  # the default says "at most", and a shipped text is short
            notes.append(
                f"scored on fewer than {spec.samples} sequences of {spec.sequence_length} tokens, "
                f"since the text is short: {', '.join(short)}"
            )
    if plan.recipe.verify is not None:
        verified = {language: texts[language] for language in plan.verify_languages if language in texts}
        short = list(_short_to_verify(plan.recipe.verify, tokens, verified, problems))
        if short:
            wanted = plan.recipe.verify.tokens
            notes.append(f"measured on fewer than {wanted} tokens, since the text is short: " + ", ".join(short))
        notes += _too_little_to_tell(plan.recipe.verify, tokens, verified)
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return notes


def needs_text(plan: Plan) -> bool:
    """True if the model is to be scored or measured on text."""
    return bool(plan.sampled_scores()) or plan.recipe.verify is not None


def _read(plan: Plan, problems: list[str]) -> dict[str, Text]:
    texts = {}
    for language in needed_languages(plan):
        try:
            texts[language] = plan.corpus.text(language)
        except InputError as error:
            own = isinstance(plan.recipe.corpus, dict)
            problems += [str(plan.file.problem(("corpus", language), what)) if own else what for what in error.said]
    return texts


def _short_to_score(
    spec: SampledScore, tokens: TokenCounts, texts: dict[str, Text], problems: list[str]
) -> Iterator[str]:
    begun = tokens.begun()
    step = spec.sequence_length - begun
    if step < 1:
        problems.append(f"sequence_length {spec.sequence_length} {no_room(begun)}")
        return
    for language in dict.fromkeys(spec.languages):
        if language not in texts:
            continue
        found = tokens.count(texts[language].score)
        if not predicted(begun + min(found, step), begun):
            problems.append(_too_short(language, "score on", found))
        elif found < spec.samples * step:
            yield f"{language} {found // step} ({found:,} tokens; {spec.samples * step:,} needed)"


def _short_to_verify(
    spec: VerifySpec, tokens: TokenCounts, texts: dict[str, Text], problems: list[str]
) -> Iterator[str]:
    begun = tokens.begun()
    if spec.window < begun:
        problems.append(f"verify.window {spec.window} {no_room(begun)}")
        return
    for language, text in texts.items():
        found = tokens.count(text.evaluate)
        counted = predicted(found + begun, begun)
        if counted < 1:
            problems.append(_too_short(language, "evaluate on", found))
        elif counted < spec.tokens:
            yield f"{language} {counted:,}"


def _too_little_to_tell(spec: VerifySpec, tokens: TokenCounts, texts: dict[str, Text]) -> Iterator[str]:
    """Yield what the report will not be able to say of some languages, and what would help."""
    begun = tokens.begun()
    found = {code: predicted(tokens.count(text.evaluate) + begun, begun) for code, text in texts.items()}
    counts = {code: min(count, spec.tokens) for code, count in found.items()}
    if spec.window < begun or not all(counts.values()):
        return  # which is said as a mistake
    few = [f"{code} {count}" for code, count in counts.items() if count < FEWEST_TOKENS]
    if few:
        yield (
            f"too little text to tell what came out, with fewer than {FEWEST_TOKENS} tokens ({', '.join(few)}): set "
            "verify.tokens to more, or give longer texts"
        )
    a_window = new_tokens(begun, spec.window, spec.stride or spec.window)
    single = [
        code
        for code, count in counts.items()
        if count <= a_window and _sentences_measured(texts[code].evaluate, count / found[code]) < 2
    ]
    if single:
        least = max(min(counts[code] for code in single) // 4, begun + 1)
        yield (
            f"only one sentence and one window, so no interval can be given ({', '.join(single)}): set "
            f"verify.window to {least} or less, or measure on more text"
        )


def _sentences_measured(text: str, share: float) -> int:
    """Return how many sentences the first part of a text has begun, about."""
    ends = sentence_ends(text)
    return 1 + sum(end < share * ends[-1] for end in ends)


def _too_short(language: str, purpose: str, found: int) -> str:
    return (
        f"the text for '{language}' is too short to {purpose}: it has {found} token(s), and at least one "
        "must be predicted from another"
    )
