"""The documents of a file, by the kind that its suffix says: lines of text, JSON, CSV, TSV or Parquet.

No kind is guessed: a file whose suffix says none is refused, and so is text that is evidently another kind.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from surgeon.checkpoint.plain_json import NotPlain, parse_json
from surgeon.errors import InputError, did_you_mean
from surgeon.text.unpacked import ALWAYS, MOST_TIMES, PACKED, opened_text

_LONGEST_LIST = 1 << 28  # bytes of a .json file that is one list: all of it is in memory at once
_LONGEST_CELL = (1 << 31) - 1  # characters, the most that csv takes where a long has 32 bits
_JSON_IS = "a .json file holds one list of objects, or one object per line"
_MARKUP = re.compile(r"\s*<(!doctype|html|\?xml)\b", re.IGNORECASE)


def text_of(row: Mapping[str, Any], field: str, where: str) -> str:
    """Return the text of a row's field; several texts, as of a list of messages, are joined by line breaks.

    A dot leads into an object, unless the row has a field of just that name; of a list every item is taken.

    Args:
        row: names of fields, and what they hold.
        field: a name, or several with dots between.
        where: the file and the line, or the number, of the row, for messages.

    Raises:
        InputError: there is no such field, or it holds no text.
    """
    return "\n".join(_texts(row, [field] if field in row else field.split("."), (), where))


def _texts(value: Any, names: Sequence[str], above: tuple[str, ...], where: str) -> Iterator[str]:
    """Yield the texts that `names` lead to from a value that was found under the names `above`."""
    if value is None:
        return
    if isinstance(value, list | tuple):
        # Those that have the field, such as the parts of a message that are text and no picture.
        having = [item for item in value if names and isinstance(item, Mapping) and names[0] in item]
        for item in having or value:
            yield from _texts(item, names, above, where)
    elif names and isinstance(value, Mapping):
        if names[0] not in value:
            within = f" in '{'.'.join(above)}'" if above else ""
            raise InputError(f"{where}: no field '{names[0]}'{within}{did_you_mean(names[0], value)}")
        yield from _texts(value[names[0]], names[1:], (*above, names[0]), where)
    elif isinstance(value, str) and not names:
        yield value
    elif isinstance(value, Mapping):
        inner = [f"{'.'.join(above)}.{name}" for name in value]
        raise InputError(
            f"{where}: field '{'.'.join(above)}' holds objects and no text; write one of {', '.join(inner)}"
        )
    else:
        what = f"no field '{names[0]}'" if names else "no text"
        raise InputError(f"{where}: field '{'.'.join(above)}' holds {what} but {type(value).__name__}")


def file_documents(path: Path, field: str) -> Iterator[str]:
    """Yield the documents of a file: its lines, or what `field` says of its rows.

    Raises:
        InputError: there is no such file, its kind is unknown, it is damaged, or has no such field of text.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such text file")
    return kind_of(path)(path, field)


def kind_of(path: Path) -> Callable[[Path, str], Iterator[str]]:
    """Return the reader of a file, by its suffix alone.

    Raises:
        InputError: the suffix says no kind that can be read.
    """
    suffix = _suffix(path)
    if suffix not in _READERS or (suffix == ".parquet" and path.suffix.lower() in PACKED):
        known, compressed = ", ".join(_READERS), ", ".join(PACKED)
        raise InputError(
            f"{path}: the suffix '{suffix}' says no kind of text that can be read ({known}; all but .parquet also "
            f"compressed as {compressed}); name plain text .txt, a document per line"
        )
    return _READERS[suffix]


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


def _lines(path: Path, field: str) -> Iterator[str]:
    begun = False
    with opened_text(path) as text:
        for _, line in _numbered(path, text):
            if not begun and line.strip():
                begun = True
                _refuse_other_kinds(path, line.strip())
            yield line.rstrip("\n")


def _numbered(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Number the lines of a file.

    Raises:
        InputError: a line holds a NUL, which no text does.
    """
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise InputError(
                f"{path}:{number}: holds a NUL byte, as no text does (UTF-16 without a mark at its start?)"
            )
        yield number, line


def _refuse_other_kinds(path: Path, first: str) -> None:
    """Refuse a file of plain text whose first line is evidently data or markup, whose syntax would be measured."""
    if _MARKUP.match(first):
        raise InputError(f"{path}: HTML or XML, and no plain text; take the text out of it first")
    is_json = first in ("[", "{") or first.startswith("[{")
    if first.startswith("{") and not is_json:
        with suppress(NotPlain):
            is_json = isinstance(parse_json(first.encode(), unique=False), dict)
    if is_json:
        raise InputError(f"{path}: JSON, and no plain text; name it .json, or .jsonl if each line is an object")


def _json(path: Path, field: str) -> Iterator[str]:
    """Read one list of objects, or an object per line, as both are called .json."""
    with opened_text(path) as text:
        start = text.read(1)
        while start.isspace():
            start = text.read(1)
        whole = start + text.read(_LONGEST_LIST) if start == "[" else None
    if whole is None:
        yield from _json_lines(path, field)
        return
    try:
        rows = parse_json(whole.encode(), _LONGEST_LIST, unique=False)
    except NotPlain as error:
        raise InputError(f"{path}: {error}; {_JSON_IS}") from None
    for number, row in enumerate(rows, 1):
        yield _of_object(row, field, f"{path}: item {number}")


def _json_lines(path: Path, field: str) -> Iterator[str]:
    with opened_text(path) as text:
        for number, line in _numbered(path, text):
            if not line.strip():
                continue
            try:
                row = parse_json(line.encode(), unique=False)
            except NotPlain as error:
                what = _JSON_IS if _suffix(path) == ".json" else "a .jsonl file has one JSON object per line"
                raise InputError(f"{path}:{number}: {error}; {what}") from None
            yield _of_object(row, field, f"{path}:{number}")


def _of_object(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a JSON object but {type(row).__name__}")
    return text_of(row, field, where)


def _table(path: Path, field: str, delimiter: str) -> Iterator[str]:
    """Read a table whose first row names the columns; a cell in quotes may hold delimiters and line breaks."""
    csv.field_size_limit(_LONGEST_CELL)
    with opened_text(path) as text:
        rows = csv.reader((line for _, line in _numbered(path, text)), delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
            if names.count(field) != 1:
                what = "several columns" if field in names else "no column"
                raise InputError(f"{path}: {what} '{field}'{did_you_mean(field, names)}")
            column = names.index(field)
            for row in rows:
                if row and len(row) != len(names):
                    raise InputError(f"{path}:{rows.line_num}: {len(row)} cells, where the first row has {len(names)}")
                if row:
                    yield row[column]
        except csv.Error as error:
            raise InputError(f"{path}:{rows.line_num}: {error}") from None


def _parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, schema = file.schema_arrow.names, file.schema
            top = field if field in names else field.partition(".")[0]
            if top not in names:
                raise InputError(f"{path}: no column '{top}'{did_you_mean(top, names)}")
            leaves = [schema.column(i) for i in range(len(schema))]
            texts = [leaf.path for leaf in leaves if leaf.path.startswith(f"{top}.") or leaf.path == top]
            texts = [leaf.path for leaf in leaves if leaf.path in texts and leaf.physical_type == "BYTE_ARRAY"]
        # Text that many rows share is kept once: written out it may be any multiple of the file.
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            left, numbers = max(MOST_TIMES * path.stat().st_size, ALWAYS), count(1)
            for batch in file.iter_batches(batch_size=256, columns=[top]):
                for value in batch.column(0):
                    text = text_of({top: value.as_py()}, field, f"{path}: row {next(numbers)}")
                    left -= len(text)
                    if left < 0:
                        raise InputError(f"{path}: unpacks to more than {MOST_TIMES} times its size")
                    yield text
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # which of them damage ends in is chance
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a Parquet file that can be read ({said})") from None


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _lines, ".text": _lines, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json,
    ".csv": partial(_table, delimiter=","), ".tsv": partial(_table, delimiter="\t"), ".parquet": _parquet,
}  # fmt: skip
