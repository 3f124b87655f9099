"""Documents of text, one by one: the lines of a text file, and the rows of data files or of a dataset."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from surgeon.checkpoint.hub import fetch_file, hub_errors
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.foreign import dataset_rows
from surgeon.text.dataset_files import CARD, LONGEST_CARD, NoSuchFiles, folder_files, saved_files, split_files
from surgeon.text.fields import text_of
from surgeon.text.files import file_documents


@dataclass(frozen=True)
class FileLocation:
    """Text in a file on this disk: the lines of a text file, or `field` of the rows of a file of data (see `files`).

    At most `documents` of them are read, from the first; None means all.
    """

    path: Path
    field: str = "text"
    documents: int | None = None

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class DatasetLocation:
    """Text in a dataset of the Hub or in a folder: `field` of `split`, the first `documents` rows."""

    dataset: str
    config: str | None
    split: str
    field: str
    revision: str | None
    documents: int

    def __str__(self) -> str:
        return f"dataset {self.dataset}" + (f", config {self.config}" if self.config else "") + f", split {self.split}"


@dataclass(frozen=True)
class Documents:
    """What was drawn from a location; `revision` is the commit, if it came from the Hub. None is empty."""

    texts: tuple[str, ...]
    revision: str | None = None


def read_documents(where: FileLocation | DatasetLocation) -> Documents:
    """Read the documents of a location in their order; those without a visible character are left out.

    Raises:
        InputError: there is no such file or dataset, it is damaged, or has no such field of text.
        EnvironmentFailure: a dataset could not be reached.
    """
    if isinstance(where, DatasetLocation):
        return _read_dataset(where)
    found = file_documents(where.path, where.field)
    return Documents(tuple(islice((text for text in found if text.strip()), where.documents)))


def _read_dataset(where: DatasetLocation) -> Documents:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    name, local = str(where), Path(os.path.expanduser(where.dataset))
    try:
        with hub_errors(name):
            root, names, card, revision = _folder(local) if local.exists() else _repository(where)
            saved = saved_files(local, names, where.config, where.split) if local.exists() else None
            files = saved or split_files(names, card, where.config, where.split)
            paths = (f"{root}/{file}" for file in files.names)
            rows = (row for path in paths for row in dataset_rows(files.builder, path, files.options))
            texts = [
                text_of(row, where.field, f"{name}: row {number}")
                for number, row in enumerate(islice(rows, where.documents), 1)
            ]
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, FileNotFoundError) as error:
        raise InputError(f"{name}: {_first_line(error)}") from None
    except OSError as error:
        raise EnvironmentFailure(f"{name}: cannot be read ({_first_line(error)}); run the same command again") from None
    return Documents(tuple(text for text in texts if text.strip()), revision)


def _folder(folder: Path) -> tuple[str, list[str], bytes, None]:
    """Return a local dataset's root, the names of its files, and its card."""
    if not folder.is_dir():
        raise NoSuchFiles("a file, and no dataset; name it with `file:`")
    names = folder_files(folder)
    card = b""
    if CARD in names:
        with (folder / CARD).open("rb") as file:
            card = file.read(LONGEST_CARD + 1)
    return str(folder), names, card, None


def _repository(where: DatasetLocation) -> tuple[str, list[str], bytes, str]:
    """Return the same of a dataset on the Hub, and its commit: all of a run, and its repetition, read the same."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(where.dataset, revision=where.revision)
    names, revision, card = sorted(entry.rfilename for entry in info.siblings or ()), str(info.sha), b""
    if CARD in names:
        with fetch_file(where.dataset, CARD, revision, "dataset").open("rb") as file:
            card = file.read(LONGEST_CARD + 1)
    return f"hf://datasets/{where.dataset}@{revision}", names, card, revision


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
