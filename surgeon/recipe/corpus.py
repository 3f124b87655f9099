"""The corpus that a recipe names: where each language's text is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from surgeon.errors import InputError, present
from surgeon.recipe.fields import Count, Model
from surgeon.text.corpora import Corpus, DatasetLocation, FileLocation, Location, builtin_corpus
from surgeon.text.languages import language

_DOCUMENTS = 2000  # of a dataset, unless the recipe says how many


class TextSpec(Model):
    """One language's text: from a file, or from a dataset read as a stream."""

    file: str | None = Field(
        None, description="`.txt` (a document per line), `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet`"
    )
    dataset: str | None = Field(None, description="an id on the Hub, or a folder")
    config: str | None = Field(None, description="the dataset's configuration, often a language")
    split: str = Field("train", description="which part of the dataset")
    field: str = Field("text", description="the field or column of the text; `translation.en` is one inside another")
    revision: str | None = Field(None, description="a branch, tag or commit of the dataset; the newest when left out")
    name: Annotated[str, Field(min_length=1, max_length=60)] | None = Field(
        None, description="English name of the language; known for those of `surgeon languages`"
    )
    script: Annotated[str, Field(min_length=1, max_length=60)] | None = Field(None, description="its script")
    family: Annotated[str, Field(min_length=1, max_length=60)] | None = Field(None, description="its family")
    documents: Count | None = Field(
        None, description="how many to read, from the first; when left out, all of a file and 2000 of a dataset"
    )

    @classmethod
    def of(cls, said: object) -> TextSpec | None:
        """Return the text that is said by a path, by these keys, or as it is; None for what says none.

        Raises:
            ValidationError: the keys are not these.
        """
        if isinstance(said, str):
            return cls(file=said)
        if isinstance(said, Mapping):
            return cls.model_validate(dict(said))
        return said if isinstance(said, cls) else None

    @property
    def location(self) -> Location:
        """Where the text is."""
        if self.file is not None:
            return FileLocation(Path(os.path.expanduser(self.file)), self.field, self.documents)
        documents = self.documents or _DOCUMENTS
        return DatasetLocation(str(self.dataset), self.config, self.split, self.field, self.revision, documents)

    @model_validator(mode="after")
    def _one_origin(self) -> TextSpec:
        if (self.file is None) == (self.dataset is None):
            raise ValueError("give either file or dataset")
        # Defaults may stand there, as they do in a recipe with its defaults filled in.
        if self.file is not None and (self.config, self.split, self.revision) != (None, "train", None):
            raise ValueError("config, split and revision go with dataset, not with file")
        return self


def open_corpus(said: str | Mapping[str, str | TextSpec]) -> Corpus:
    """Open a corpus, as a recipe names it; no text is read.

    Raises:
        InputError: there is no such corpus.
    """
    if isinstance(said, str):
        if not said.startswith("builtin:"):
            raise InputError(
                f"corpus: {said!r} is not a corpus; write builtin:udhr30, or a mapping of languages such as "
                "{ar: texts/ar.txt}"
            )
        return builtin_corpus(said.removeprefix("builtin:"))
    texts = {code: present(TextSpec.of(text)) for code, text in said.items()}
    named = {code: language(code, text.model_dump()) for code, text in texts.items()}
    return Corpus("of the recipe", {code: text.location for code, text in texts.items()}, named)
