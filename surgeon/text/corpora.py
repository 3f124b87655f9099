"""Text per language: shipped, from local files, or from datasets; always in two halves.

Importance is scored on one half and perplexity is measured on the other, so that no model is measured on
the text that chose its region. The Declaration is split by article; any other text by alternating
paragraphs (lines of a file, documents of a dataset).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.sources import ASSETS
from surgeon.errors import InputError, did_you_mean
from surgeon.text.documents import DatasetLocation, FileLocation, read_documents
from surgeon.text.languages import Language, code_meant, language

Location = Path | FileLocation | DatasetLocation


@dataclass(frozen=True)
class Text:
    """One language's text; `score` and `evaluate` share no paragraph position.

    `origin` says where it was drawn from, `revision` at which commit of the Hub, if it came from there.
    """

    language: str
    score: str
    evaluate: str
    origin: str = ""
    revision: str | None = None

    @property
    def score_hash(self) -> str:
        """SHA-256 of the scoring half, UTF-8."""
        return sha256(self.score.encode())

    @property
    def evaluate_hash(self) -> str:
        """SHA-256 of the evaluation half, UTF-8."""
        return sha256(self.evaluate.encode())


@dataclass(frozen=True)
class Corpus:
    """A text for each language, read when first asked for and kept, so that a run sees one text throughout.

    `named` are languages of which the recipe says more than their code.
    """

    name: str
    locations: Mapping[str, Location]
    named: Mapping[str, Language] = field(default_factory=dict)
    _texts: dict[str, Text] = field(default_factory=dict, repr=False, compare=False)

    @property
    def languages(self) -> list[str]:
        """Languages with text, in alphabetical order of their codes."""
        return sorted(self.locations)

    def language(self, code: str) -> Language:
        """Return what is known of a language, by the recipe or at all."""
        return self.named.get(code) or language(code)

    def text(self, language: str) -> Text:
        """Read one language's text.

        Raises:
            InputError: the language is not in the corpus, its file is missing, not UTF-8, or too short to split.
            EnvironmentFailure: a dataset could not be reached.
        """
        if language not in self.locations:
            meant = code_meant(language, self.locations, self.language)
            raise InputError(f"corpus {self.name} has no text for '{language}'{meant}")
        if language not in self._texts:
            self._texts[language] = self._read(language)
        return self._texts[language]

    def is_read(self, language: str) -> bool:
        """True if a language's text has been read already."""
        return language in self._texts

    def revision(self, language: str) -> str | None:
        """Return the commit that a language's text was drawn from; None if it was not read, or is not from the Hub."""
        return self._texts[language].revision if language in self._texts else None

    def _read(self, language: str) -> Text:
        where = self.locations[language]
        if isinstance(where, Path) and where.parent.name == "score" and where.is_relative_to(ASSETS):
            evaluate = where.parent.parent / "eval" / where.name
            return Text(language, where.read_text("utf-8"), evaluate.read_text("utf-8"), self.name)
        drawn = read_documents(FileLocation(where) if isinstance(where, Path) else where)
        paragraphs = [line for text in drawn.texts for line in text.splitlines() if line.strip()]
        if len(drawn.texts) > 1:  # a document is not torn apart between the halves
            paragraphs = list(drawn.texts)
        if len(paragraphs) < 2:
            raise InputError(
                f"the text for '{language}' ({where}) has {'1' if paragraphs else 'no'} paragraph; at least two are "
                "needed, one to score on and one to evaluate on"
            )
        score, evaluate_on = ("\n".join(half) + "\n" for half in (paragraphs[::2], paragraphs[1::2]))
        return Text(language, score, evaluate_on, str(where), drawn.revision)


def given_corpus(texts: Mapping[str, Sequence[str]], others: Corpus) -> Corpus:
    """Return a corpus of documents by language that are at hand, to be measured whole, beside another corpus's.

    Raises:
        InputError: something given is no text, or none of a language's documents has any.
    """
    found = {}
    for code, documents in texts.items():
        if not all(isinstance(document, str) for document in documents):
            raise InputError(f"the documents given for '{code}' are not all text")
        if not any(document.strip() for document in documents):
            raise InputError(f"the documents given for '{code}' hold no text")
        found[code] = Text(code, "", "\n".join(text.rstrip("\n") for text in documents if text.strip()) + "\n", "given")
    nowhere = dict.fromkeys(found, Path("given"))
    return Corpus("given", {**others.locations, **nowhere}, others.named, found)


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
