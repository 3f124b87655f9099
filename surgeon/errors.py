"""Every error that surgeon raises on purpose.

    SurgeonError                 never raised itself
    ├── InputError               the user can mend it: recipe, checkpoint, arguments   (exit code 2)
    │   ├── RecipeError          one or more problems in a recipe, each with its line
    │   ├── CheckpointError      a checkpoint that is missing, damaged or not understood
    │   ├── RegionError          a region that cannot be read, does not fit, or is empty
    │   └── FreezeError          a bundle, model or optimizer that cannot be frozen, or a frozen entry that moved
    └── EnvironmentFailure       disk, network or memory gave out; work done is kept    (exit code 3)

Messages say what is wrong, where (file, line, tensor) and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Found = TypeVar("Found")

_LONGEST_REASON = 1000  # characters of what another library says; what matters comes first


class SurgeonError(Exception):
    """Base of all errors below; catch it to catch them all."""

    exit_code = 2

    def __init__(self, *said: object) -> None:
        """Take one message, or several that are one line each; what stands inside a message may hold anything."""
        self.said = tuple(str(message) for message in said)
        super().__init__("\n".join(self.said))


class InputError(SurgeonError):
    """Something the user gave cannot be used as it is."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or of a kind that surgeon does not read."""


class RegionError(InputError):
    """A region file is damaged, or a region does not fit the tensors at hand."""


class FreezeError(InputError):
    """A model cannot be frozen as asked, or a frozen entry has moved."""


class EnvironmentFailure(SurgeonError):
    """Disk, network or memory gave out. What was finished is kept; the same command resumes."""

    exit_code = 3


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe: `where` is `file:line` or `--set PATH`, `what` the message."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class RecipeError(InputError):
    """All problems of one recipe at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(*self.problems)


def present(value: Found | None) -> Found:
    """Return a value that must be there by what was checked before; unlike `assert`, also under `python -O`.

    Raises:
        TypeError: it is None, which is a defect of surgeon.
    """
    if value is None:
        raise TypeError("None where something was checked to be: a defect of surgeon")
    return value


def close_to(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is nearest to one that is not known, if any is near."""
    return next(iter(difflib.get_close_matches(word, sorted(set(known)), n=1, cutoff=0.6)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known word, else the list of known words."""
    names = sorted(set(known))
    close = close_to(word, names)
    if close:
        return f"; did you mean '{close}'?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; known: {shown}"


def reason(error: BaseException) -> str:
    """Return all that a library says of an error, on one line; its name where it says nothing, or one word only."""
    said = " ".join(str(error).split())
    named = said if " " in said else f"{type(error).__name__}: {said}" if said else type(error).__name__
    return named[:_LONGEST_REASON] + (" ..." if len(named) > _LONGEST_REASON else "")


def shorten(names: Sequence[str], shown: int = 3) -> str:
    """Return the first few names as a phrase, such as `'a', 'b' and 4 more`."""
    phrase = ", ".join(f"'{name}'" for name in names[:shown])
    return phrase + (f" and {len(names) - shown} more" if len(names) > shown else "")
