"""What can be seen of a corpus before a model is loaded: do its texts open, have they the fields, is there enough?

Files on this disk are looked at by every plan, datasets by `surgeon plan` alone, since a run reads them at once. Tokens
are not counted here, but estimated from bytes: a tokenizer would take longer to load than the plan takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from surgeon.errors import EnvironmentFailure, InputError, Problem, RecipeError
from surgeon.plan.plan import Plan
from surgeon.text.files import kind_of
from surgeon.text.unpacked import PACKED

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
