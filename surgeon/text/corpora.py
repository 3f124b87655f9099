"""Text per language: shipped, from local files, or from datasets; always in two halves.

Importance is scored on one half and perplexity is measured on the other, so that no model is measured on
the text that chose its region. The Declaration is split by article; any other text by alternating
paragraphs (lines of a file, documents of a dataset).
"""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from surgeon.checkpoint.hashing import sha256
from surgeon.checkpoint.hub import fetch_file, hub_errors
from surgeon.checkpoint.sources import ASSETS
from surgeon.errors import EnvironmentFailure, InputError, did_you_mean
from surgeon.foreign import dataset_rows
from surgeon.text.dataset_files import CARD, LONGEST_CARD, NoSuchFiles, folder_files, saved_files, split_files
from surgeon.text.files import file_documents, text_of
from surgeon.text.languages import Language, code_meant, language


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
class Documents:
    """What was drawn from a location; `revision` is the commit, if it came from the Hub. None is empty."""

    texts: tuple[str, ...]
    revision: str | None = None


class Location:
    """Where a language's text is; `path` is the file, where it is one on this disk."""

    path: Path | None = None

    @abstractmethod
    def read(self) -> Documents:
        """Read the documents in their order; those without a visible character are left out.

        Raises:
            InputError: there is no such file or dataset, it is damaged, or has no such field of text.
            EnvironmentFailure: a dataset could not be reached.
        """

    @abstractmethod
    def first(self, count: int) -> Location:
        """Return the location of so many documents at most, from the first."""

    def text(self, language: str) -> Text:
        """Read a language's text, and part it in halves: by documents, or by the lines of a single one.

        Raises:
            InputError: as `read`, or it is too short to be parted.
        """
        drawn = self.read()
        paragraphs = [line for text in drawn.texts for line in text.splitlines() if line.strip()]
        if len(drawn.texts) > 1:  # a document is not torn apart between the halves
            paragraphs = list(drawn.texts)
        if len(paragraphs) < 2:
            raise InputError(
                f"the text for '{language}' ({self}) has {'1' if paragraphs else 'no'} paragraph; at least two are "
                "needed, one to score on and one to evaluate on"
            )
        score, evaluate_on = ("\n".join(half) + "\n" for half in (paragraphs[::2], paragraphs[1::2]))
        return Text(language, score, evaluate_on, str(self), drawn.revision)


@dataclass(frozen=True)
class FileLocation(Location):
    """Text in a file on this disk: the lines of a text file, or `field` of the rows of a file of data (see `files`).

    At most `documents` of them are read, from the first; None means all.
    """

    path: Path
    field: str = "text"
    documents: int | None = None

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Documents:
        """Read the file, see `Location`."""
        texts = (text for text in file_documents(self.path, self.field) if text.strip())
        return Documents(tuple(islice(texts, self.documents)))

    def first(self, count: int) -> FileLocation:
        """Return the first documents, see `Location`."""
        return replace(self, documents=min(count, self.documents or count))


@dataclass(frozen=True)
class ShippedLocation(FileLocation):
    """A text that is shipped with the package, whose halves are files of their own; `path` is that to score on."""

    def text(self, language: str) -> Text:
        """Read both halves."""
        folder = self.path.parent.parent
        score, evaluate = ((folder / half / self.path.name).read_text("utf-8") for half in ("score", "eval"))
        return Text(language, score, evaluate, f"builtin:{folder.name}")


@dataclass(frozen=True)
class DatasetLocation(Location):
    """Text in a dataset of the Hub or in a folder: `field` of `split`, the first `documents` rows."""

    dataset: str
    config: str | None
    split: str
    field: str
    revision: str | None
    documents: int

    def __str__(self) -> str:
        return f"dataset {self.dataset}" + (f", config {self.config}" if self.config else "") + f", split {self.split}"

    def first(self, count: int) -> DatasetLocation:
        """Return the first rows, see `Location`."""
        return replace(self, documents=min(count, self.documents))

    def read(self) -> Documents:
        """Read the dataset, see `Location`."""
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        name, local = str(self), Path(os.path.expanduser(self.dataset))
        try:
            with hub_errors(name):
                root, names, card, revision = _files(self, local)
                saved = saved_files(local, names, self.config, self.split) if local.exists() else None
                files = saved or split_files(names, card, self.config, self.split)
                paths = (f"{root}/{file}" for file in files.names)
                rows = (row for path in paths for row in dataset_rows(files.builder, path, files.options))
                texts = [
                    text_of(row, self.field, f"{name}: row {number}")
                    for number, row in enumerate(islice(rows, self.documents), 1)
                ]
        except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, FileNotFoundError) as error:
            raise InputError(f"{name}: {_first_line(error)}") from None
        except OSError as error:
            raise EnvironmentFailure(
                f"{name}: cannot be read ({_first_line(error)}); run the same command again"
            ) from None
        return Documents(tuple(text for text in texts if text.strip()), revision)


def _files(where: DatasetLocation, local: Path) -> tuple[str, list[str], bytes, str | None]:
    """Return a dataset's root, the names of its files, its card, and its commit on the Hub.

    All of a run, and its repetition, read the same commit.
    """
    from huggingface_hub import HfApi

    revision: str | None = None
    if local.exists():
        if not local.is_dir():
            raise NoSuchFiles("a file, and no dataset; name it with `file:`")
        root, names = str(local), folder_files(local)
    else:
        info = HfApi().dataset_info(where.dataset, revision=where.revision)
        names, revision = sorted(entry.rfilename for entry in info.siblings or ()), str(info.sha)
        root = f"hf://datasets/{where.dataset}@{revision}"
    if CARD not in names:
        return root, names, b"", revision
    card = local / CARD if revision is None else fetch_file(where.dataset, CARD, revision, "dataset")
    with card.open("rb") as file:
        return root, names, file.read(LONGEST_CARD + 1), revision


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
            self._texts[language] = self.locations[language].text(language)
        return self._texts[language]

    def is_read(self, language: str) -> bool:
        """True if a language's text has been read already."""
        return language in self._texts

    def revision(self, language: str) -> str | None:
        """Return the commit that a language's text was drawn from; None if it was not read, or is not from the Hub."""
        return self._texts[language].revision if language in self._texts else None


def given_corpus(texts: Mapping[str, Sequence[str]], others: Corpus) -> Corpus:
    """Return a corpus of documents by language that are at hand, to be measured whole, beside another corpus's.

    Raises:
        InputError: something given is no text, or none of a language's documents has any.
    """
    given = {}
    for code, documents in texts.items():
        if not all(isinstance(document, str) for document in documents):
            raise InputError(f"the documents given for '{code}' are not all text")
        if not any(document.strip() for document in documents):
            raise InputError(f"the documents given for '{code}' hold no text")
        given[code] = Text(code, "", "\n".join(text.rstrip("\n") for text in documents if text.strip()) + "\n", "given")
    nowhere = dict.fromkeys(given, FileLocation(Path("given")))
    return Corpus("given", {**others.locations, **nowhere}, others.named, given)


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
    files = sorted((ASSETS / name / "score").glob("*.txt"))
    return Corpus(f"builtin:{name}", {path.stem: ShippedLocation(path) for path in files})
