"""Text per language: shipped, from local files, or from datasets; always in two halves.

Importance is scored on one half and perplexity is measured on the other, so that no model is measured on
the text that chose its region. The Declaration is split by article; any other text by alternating
paragraphs (lines of a file, documents of a dataset).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from surgeon.errors import EnvironmentFailure, InputError, did_you_mean
from surgeon.sources import ASSETS


@dataclass(frozen=True)
class DatasetLocation:
    """Where a dataset's text is: `field` of `split`, the first `documents` of them."""

    dataset: str
    config: str | None
    split: str
    field: str
    revision: str | None
    documents: int


@dataclass(frozen=True)
class Text:
    """One language's text; `score` and `evaluate` share no paragraph position."""

    language: str
    score: str
    evaluate: str

    @property
    def score_hash(self) -> str:
        """SHA-256 of the scoring half, UTF-8."""
        return hashlib.sha256(self.score.encode()).hexdigest()

    @property
    def evaluate_hash(self) -> str:
        """SHA-256 of the evaluation half, UTF-8."""
        return hashlib.sha256(self.evaluate.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """A text for each language, read when asked for."""

    name: str
    locations: Mapping[str, Path | DatasetLocation]

    @property
    def languages(self) -> list[str]:
        """Languages with text, in alphabetical order of their codes."""
        return sorted(self.locations)

    def text(self, language: str) -> Text:
        """Read one language's text.

        Raises:
            InputError: the language is not in the corpus, its file is missing, not UTF-8, or too short to split.
            EnvironmentFailure: a dataset could not be reached.
        """
        if language not in self.locations:
            raise InputError(f"corpus {self.name} has no text for '{language}'{did_you_mean(language, self.locations)}")
        where = self.locations[language]
        if isinstance(where, Path) and where.parent.name == "score" and where.is_relative_to(ASSETS):
            evaluate = where.parent.parent / "eval" / where.name
            return Text(language, _read(where), _read(evaluate))
        paragraphs = _read(where).splitlines() if isinstance(where, Path) else _documents(where)
        paragraphs = [paragraph for paragraph in paragraphs if paragraph.strip()]
        if len(paragraphs) < 2:
            raise InputError(
                f"the text for '{language}' ({where}) has {len(paragraphs)} paragraph; at least two are needed, one "
                "to score on and one to evaluate on"
            )
        return Text(language, "\n".join(paragraphs[::2]) + "\n", "\n".join(paragraphs[1::2]) + "\n")


def builtin_corpora() -> list[str]:
    """Names of the corpora shipped with the package."""
    return sorted(folder.name for folder in ASSETS.iterdir() if (folder / "score").is_dir())


def builtin_corpus(name: str) -> Corpus:
    """Open a corpus shipped with the package.

    Raises:
        InputError: there is none of that name.
    """
    if name not in builtin_corpora():
        raise InputError(f"no builtin corpus '{name}'{did_you_mean(name, builtin_corpora())}")
    files = {path.stem: path for path in sorted((ASSETS / name / "score").glob("*.txt"))}
    return Corpus(f"builtin:{name}", files)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such text file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None


def _documents(where: DatasetLocation) -> list[str]:
    import datasets

    try:
        stream = datasets.load_dataset(
            where.dataset, where.config, split=where.split, revision=where.revision, streaming=True
        )
        documents = [row[where.field] for row in stream.take(where.documents)]
    except KeyError:
        raise InputError(f"dataset {where.dataset}: no field '{where.field}'") from None
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise InputError(f"dataset {where.dataset}: {error}") from None
    except (OSError, ConnectionError) as error:
        raise EnvironmentFailure(f"dataset {where.dataset} cannot be read: {error}") from None
    return documents
