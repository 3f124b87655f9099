"""The texts that a plan needs: do they open, have they the fields, is there enough? Told of all languages at once.

Files on this disk are looked at by every plan, datasets by `surgeon plan` alone, since a run reads them at once. A plan
does not count tokens, but estimates them from bytes: a tokenizer would take longer to load than the plan takes. A run
reads all and counts (`check_supply`), before anything is scored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from surgeon.errors import EnvironmentFailure, InputError, Problem, RecipeError
from surgeon.model.results import FEWEST_TOKENS
from surgeon.model.tokenizer import TokenCounts
from surgeon.plan.plan import Plan
from surgeon.recipe.schema import VerifySpec
from surgeon.scores.base import SampledScore
from surgeon.text.corpora import Text
from surgeon.text.files import kind_of
from surgeon.text.unpacked import PACKED
from surgeon.text.windows import new_tokens, no_room, predicted, sentence_ends

BYTES_PER_TOKEN = 3  # of text, at a guess: English has four or more, scripts of several bytes a letter two to three
_SMALL = 1 << 22  # bytes of a file that is read as a whole, in some hundredths of a second
_SMALL_PACKED = 1 << 19  # which unpacks to as much, or ten times that
_FIRST = 64  # documents of a larger one: whether it can be read at all is seen in these
_FIRST_ROWS = 2  # of a dataset: enough to see its field
_SECONDS = 2.0  # after which no further dataset is opened: a plan is to be there at once


def needed_languages(plan: Plan) -> list[str]:
    """Return the languages whose text a plan reads, each once."""
    scored = [name for spec in plan.sampled_scores() for name in spec.languages]
    return list(dict.fromkeys([*scored, *plan.verify_languages]))


def file_problems(plan: Plan) -> Iterator[Problem]:
    """Find what is wrong with the files of a recipe's corpus, in what is looked at of them."""
    needed = needed_languages(plan)
    for language, where in plan.corpus.locations.items() if isinstance(plan.recipe.corpus, dict) else ():
        if where.path is None:
            continue
        try:
            if not where.path.is_file():
                raise InputError(f"no such text file: {where}")
            if language not in needed:
                kind_of(where.path)
            elif where.path.stat().st_size <= (_SMALL_PACKED if where.path.suffix.lower() in PACKED else _SMALL):
                plan.corpus.text(language)
            else:
                where.first(_FIRST).read()
        except InputError as error:
            yield from (plan.file.problem(("corpus", language, "file"), what) for what in error.said)


def open_datasets(plan: Plan, seconds: float = _SECONDS) -> list[str]:
    """Open the datasets that a plan reads, and their first rows; returns notes on those that were not looked at.

    Raises:
        RecipeError: there is no such dataset, split or field; all of them at once.
    """
    problems, notes, left = [], [], []
    until = time.monotonic() + seconds
    for language in needed_languages(plan):
        where = plan.corpus.locations.get(language)
        if where is None or where.path is not None:
            continue
        if time.monotonic() > until:
            left.append(language)
            continue
        try:
            where.first(_FIRST_ROWS).read()
        except InputError as error:
            problems += [plan.file.problem(("corpus", language), what) for what in error.said]
        except EnvironmentFailure as error:
            notes += [f"not looked at: {what}" for what in error.said]
    if problems:
        raise RecipeError(problems)
    return [*notes, *([f"not looked at, to save time: the datasets of {', '.join(left)}"] if left else [])]


def short_texts(plan: Plan) -> list[str]:
    """Say of the files that were read as a whole where there seems to be less text than is asked for."""
    if not isinstance(plan.recipe.corpus, dict):
        return []
    read = {
        language: plan.corpus.text(language) for language in needed_languages(plan) if plan.corpus.is_read(language)
    }
    notes = []
    for spec in plan.sampled_scores():
        if "samples" in spec.model_fields_set:  # the default says "at most"
            wanted = spec.samples * spec.sequence_length
            sizes = {name: len(read[name].score.encode()) for name in dict.fromkeys(spec.languages) if name in read}
            notes += _short(f"to score on {wanted:,} tokens", wanted, sizes)
    verify = plan.recipe.verify
    if verify is not None:
        sizes = {name: len(read[name].evaluate.encode()) for name in plan.verify_languages if name in read}
        notes += _short(f"to measure on {verify.tokens:,} tokens", verify.tokens, sizes)
    return notes


def _short(purpose: str, wanted: int, sizes: dict[str, int]) -> list[str]:
    short = [
        f"{name} about {size // BYTES_PER_TOKEN:,}" for name, size in sizes.items() if size < wanted * BYTES_PER_TOKEN
    ]
    return [f"too short {purpose}, by a guess from its bytes: {', '.join(short)}"] if short else []


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
        count = tokens.count(texts[language].score)
        if not predicted(begun + min(count, step), begun):
            problems.append(_too_short(language, "score on", count))
        elif count < spec.samples * step:
            yield f"{language} {count // step} ({count:,} tokens; {spec.samples * step:,} needed)"


def _short_to_verify(
    spec: VerifySpec, tokens: TokenCounts, texts: dict[str, Text], problems: list[str]
) -> Iterator[str]:
    begun = tokens.begun()
    if spec.window < begun:
        problems.append(f"verify.window {spec.window} {no_room(begun)}")
        return
    for language, text in texts.items():
        count = tokens.count(text.evaluate)
        measured = predicted(count + begun, begun)
        if measured < 1:
            problems.append(_too_short(language, "evaluate on", count))
        elif measured < spec.tokens:
            yield f"{language} {measured:,}"


def _too_little_to_tell(spec: VerifySpec, tokens: TokenCounts, texts: dict[str, Text]) -> Iterator[str]:
    """Yield what the report will not be able to say of some languages, and what would help."""
    begun = tokens.begun()
    whole = {code: predicted(tokens.count(text.evaluate) + begun, begun) for code, text in texts.items()}
    counts = {code: min(count, spec.tokens) for code, count in whole.items()}
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
        if count <= a_window and _sentences_measured(texts[code].evaluate, count / whole[code]) < 2
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


def _too_short(language: str, purpose: str, tokens: int) -> str:
    return (
        f"the text for '{language}' is too short to {purpose}: it has {tokens} token(s), and at least one "
        "must be predicted from another"
    )
