"""Documents of text, one by one: the lines of a text file, and the rows of JSON Lines, Parquet, or a dataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from surgeon.checkpoint.hub_errors import hub_errors
from surgeon.checkpoint.plain_json import NotPlain, parse_json
from surgeon.errors import EnvironmentFailure, InputError, did_you_mean
from surgeon.foreign import dataset_rows
from surgeon.text.dataset_files import CARD, LONGEST_CARD, NoSuchFiles, folder_files, split_files

_MOST_TIMES = 100  # the size of a Parquet file that its text may have: beyond that it repeats itself, and is no text
_ALWAYS = 1 << 24  # characters that it may have in any case


@dataclass(frozen=True)
class FileLocation:
    """Text in a file on this disk: the lines of a text file, or `field` of the rows of a `.jsonl` or `.parquet` file.

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
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
    found = readers.get(where.path.suffix.lower(), _lines)(where)
    return Documents(tuple(islice((text for text in found if text.strip()), where.documents)))


def _lines(where: FileLocation) -> Iterator[str]:
    try:
        with where.path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")
    except FileNotFoundError:
        raise InputError(f"{where.path}: no such text file") from None
    except UnicodeDecodeError:
        raise InputError(f"{where.path}: not UTF-8 text") from None


def _json_lines(where: FileLocation) -> Iterator[str]:
    for number, line in enumerate(_lines(where), 1):
        place = f"{where.path}:{number}"
        if not line.strip():
            continue
        try:
            row = parse_json(line.encode(), unique=False)
        except NotPlain as error:
            raise InputError(f"{place}: {error}; a .jsonl file has one JSON object per line") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: not a JSON object but {type(row).__name__}")
        yield _text_of(row, where.field, place)


def _parquet(where: FileLocation) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    if not where.path.is_file():
        raise InputError(f"{where.path}: no such text file")
    try:
        with pyarrow.parquet.ParquetFile(where.path) as file:
            names = file.schema_arrow.names
        if where.field not in names:
            raise InputError(f"{where.path}: no column '{where.field}'{did_you_mean(where.field, names)}")
        # Text that many rows share is kept once: written out it may be any multiple of the file.
        with pyarrow.parquet.ParquetFile(where.path, read_dictionary=[where.field]) as file:
            number, left = 0, max(_MOST_TIMES * where.path.stat().st_size, _ALWAYS)
            for batch in file.iter_batches(batch_size=256, columns=[where.field]):
                for value in batch.column(0):
                    number += 1
                    text = _text_of({where.field: value.as_py()}, where.field, f"{where.path}: row {number}")
                    left -= len(text)
                    if left < 0:
                        raise InputError(f"{where.path}: unpacks to more than {_MOST_TIMES} times its size")
                    yield text
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # which of them damage ends in is chance
        raise InputError(f"{where.path}: not a Parquet file that can be read ({_first_line(error)})") from None


def _text_of(row: Mapping[str, Any], field: str, place: str) -> str:
    if field not in row:
        raise InputError(f"{place}: no field '{field}'{did_you_mean(field, row)}")
    text = row[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"{place}: field '{field}' holds no text but {type(text).__name__}")
    return text


def _read_dataset(where: DatasetLocation) -> Documents:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    name, local = str(where), Path(os.path.expanduser(where.dataset))
    try:
        with hub_errors(name):
            root, names, card, revision = _folder(local) if local.exists() else _repository(where)
            files = split_files(names, card, where.config, where.split)
            paths = (f"{root}/{file}" for file in files.names)
            rows = (row for path in paths for row in dataset_rows(files.builder, path, files.options))
            texts = [
                _text_of(row, where.field, f"{name}: row {number}")
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
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().dataset_info(where.dataset, revision=where.revision)
    names, revision, card = sorted(entry.rfilename for entry in info.siblings or ()), str(info.sha), b""
    if CARD in names:
        with open(hf_hub_download(where.dataset, CARD, repo_type="dataset", revision=revision), "rb") as file:
            card = file.read(LONGEST_CARD + 1)
    return f"hf://datasets/{where.dataset}@{revision}", names, card, revision


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
