"""Which files of a dataset hold a split: by its card, or by their names, and none outside it.

A dataset is a folder, or a repository on the Hub. Left to itself the library `datasets` reads whatever file or address
a card names; here a card only chooses among the files of the dataset itself, and only those that hold rows of text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgeon.checkpoint.plain_json import NotPlain, read_object
from surgeon.errors import did_you_mean

CARD = "README.md"
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # which `save_to_disk` writes
LONGEST_CARD = 1 << 20  # bytes; cards of hundreds of configurations have some hundred kilobytes
_MOST_PATTERNS = 10_000  # that a card may name: each is matched with every file
_MOST_FILES = 1_000_000  # of a folder: more than any dataset has; so many names take a few hundred megabytes
# By the name's ending; a compressed file has that of its compression behind.
_BUILDERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".csv": ("csv", {}), ".tsv": ("csv", {"sep": "\t"}), ".json": ("json", {}), ".jsonl": ("json", {}),
    ".ndjson": ("json", {}), ".parquet": ("parquet", {}), ".arrow": ("arrow", {}), ".txt": ("text", {}),
}  # fmt: skip
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4")
# What a card may say of how its files are read: which characters part the columns, and what these are called.
_OPTIONS = ("sep", "delimiter", "quotechar", "names", "column_names", "header", "field")
_ELSEWHERE = re.compile(r"[/~\\]|.*(://|::|(^|/)\.\.(/|$)|\0)", re.DOTALL)


class NoSuchFiles(ValueError):
    """A dataset has no files for what is asked, or its card is damaged; the message says what."""


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split by their path in the dataset, in reading order; `options` are the builder's."""

    builder: str
    names: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def split_files(names: Sequence[str], card: bytes, config: str | None, split: str) -> SplitFiles:
    """Choose the files of a split among those of a dataset, as the library does.

    Args:
        names: the paths of all files in the dataset.
        card: the content of its README.md; empty if it has none.
        config: the configuration; None for the only or the default one.
        split: the split.

    Raises:
        NoSuchFiles: it has no such configuration or split, or its card names files that are not its own.
    """
    chosen = _configuration(_configurations(card), config)
    patterns = _patterns(names, chosen)
    if split not in patterns:
        raise NoSuchFiles(f"no split '{split}'{did_you_mean(split, patterns)}")
    files = [name for pattern in patterns[split] for name in _matching(names, pattern)]
    files = [name for name in dict.fromkeys(files) if _ending(name) in _BUILDERS]
    if not files:
        raise NoSuchFiles(f"split '{split}' has no file of a known kind ({', '.join(_BUILDERS)})")
    builder, options = _BUILDERS[_ending(files[0])]
    told = {key: chosen[key] for key in _OPTIONS if key in chosen}
    if builder not in ("csv", "json"):
        told = {}
    same = tuple(name for name in files if _BUILDERS[_ending(name)][0] == builder)
    return SplitFiles(builder, same, {**options, **told})


def saved_files(folder: Path, names: Sequence[str], config: str | None, split: str) -> SplitFiles | None:
    """Choose the files of a split in a folder that `save_to_disk` of the library made; None for any other folder.

    Such a folder says itself which of its files hold the rows: others may be left of what was made on the way.

    Raises:
        NoSuchFiles: it has no such split, or is damaged.
    """
    inside = f"{split}/" if _SAVED_SPLITS in names else ""
    if _SAVED_SPLITS not in names and _SAVED not in names:
        return None
    if config is not None:
        raise NoSuchFiles(f"a folder that `save_to_disk` made has no configurations, such as '{config}'")
    try:
        if _SAVED_SPLITS in names:
            known = [str(name) for name in read_object(folder / _SAVED_SPLITS)["splits"]]
        else:
            own = read_object(folder / _SAVED)["_split"]
            known = [split if own is None else str(own)]
        if split not in known:
            raise NoSuchFiles(f"no split '{split}'{did_you_mean(split, known)}")
        data = [inside + str(part["filename"]) for part in read_object(folder / (inside + _SAVED))["_data_files"]]
    except (NotPlain, OSError, KeyError, TypeError) as error:
        raise NoSuchFiles(f"{_SAVED} or {_SAVED_SPLITS} is damaged ({str(error) or type(error).__name__})") from None
    absent = [name for name in data if name not in names]
    if absent:
        raise NoSuchFiles(f"{_SAVED} names {absent[0][:100]!r}, which is not a file in the folder")
    return SplitFiles("arrow", tuple(data))


def folder_files(folder: Path) -> list[str]:
    """Return the paths of all plain files below a folder; links are not followed, nor taken."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        paths = (Path(place) / name for name in sorted(files))
        found += [path.relative_to(folder).as_posix() for path in paths if path.is_file() and not path.is_symlink()]
        if len(found) > _MOST_FILES:
            raise NoSuchFiles(f"more than {_MOST_FILES:,} files")
    return found


def _configurations(card: bytes) -> dict[str, dict[str, Any]]:
    """Return what a card says of its configurations, by their names."""
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData
    from huggingface_hub.repocard import RepoCard

    if len(card) > LONGEST_CARD:
        raise NoSuchFiles(f"{CARD} is longer than {LONGEST_CARD:,} bytes")
    try:
        data = (
            vars(RepoCard(card.decode("utf-8"), ignore_metadata_errors=True).data)
            if card.lstrip().startswith(b"---")
            else {}
        )
        configurations = MetadataConfigs.from_dataset_card_data(DatasetCardData(**data))
        return {str(name): dict(values) for name, values in configurations.items()}
    except Exception as error:  # of any kind: the library looks at no type before it uses it
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise NoSuchFiles(f"{CARD} is damaged ({said})") from None


def _configuration(known: Mapping[str, dict[str, Any]], config: str | None) -> dict[str, Any]:
    names = list(known) or ["default"]
    if config is None:
        given = [name for name in known if known[name].get("default")] or [n for n in names if n == "default"] or names
        if len(given) > 1:
            raise NoSuchFiles(f"several configurations, of which `config` must name one{did_you_mean('', names)}")
        config = given[0]
    if config not in names:
        raise NoSuchFiles(f"no configuration '{config}'{did_you_mean(config, names)}")
    return known.get(config, {})


def _patterns(names: Sequence[str], chosen: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the patterns of each split, as the card says or as the names of the files do."""
    from datasets.data_files import _get_data_files_patterns, sanitize_patterns

    folder = _inside(chosen.get("data_dir") or "").strip("/")
    inside = f"{folder}/" if folder not in ("", ".") else ""
    given = chosen.get("data_files")
    try:
        if given is not None:
            by_split = {str(split): list(paths) for split, paths in sanitize_patterns(given).items()}
        else:
            below = [name.removeprefix(inside) for name in names if name.startswith(inside)]
            by_split = dict(_get_data_files_patterns(lambda pattern: _matching(below, str(pattern))))
    except FileNotFoundError:
        raise NoSuchFiles(f"no files of a known kind ({', '.join(_BUILDERS)})") from None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise NoSuchFiles(f"{CARD} is damaged ({next(iter(str(error).splitlines()), type(error).__name__)})") from None
    if sum(map(len, by_split.values())) > _MOST_PATTERNS:
        raise NoSuchFiles(f"{CARD} names more than {_MOST_PATTERNS:,} files")
    return {str(split): [inside + _inside(path) for path in paths] for split, paths in by_split.items()}


def _inside(pattern: Any) -> str:
    """Return a path, or a pattern of paths, that can only be below the dataset's own folder."""
    if not isinstance(pattern, str) or _ELSEWHERE.match(pattern) or len(pattern) > 1000:
        raise NoSuchFiles(f"{CARD} names files outside the dataset, which are not read: {str(pattern)[:100]!r}")
    return pattern.removeprefix("./")


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that a pattern matches; hidden files only if it says so, as the library has it."""
    from datasets import data_files
    from fsspec.utils import glob_translate

    if pattern in names:
        return [pattern]
    if not set(pattern) & set("*?[{"):
        return []
    try:
        form = re.compile(glob_translate(pattern))
    except (re.error, ValueError) as error:
        raise NoSuchFiles(f"{CARD}: {pattern[:100]!r} is not a pattern of file names ({error})") from None
    return sorted(
        name
        for name in names
        if form.match(name)
        and name.rsplit("/", 1)[-1] not in data_files.FILES_TO_IGNORE
        and not data_files._is_unrequested_hidden_file_or_is_inside_unrequested_hidden_dir(name, pattern)
        and not data_files._is_inside_unrequested_special_dir(name, pattern)
    )


def _ending(name: str) -> str:
    plain = name.lower()
    for ending in _COMPRESSED:
        plain = plain.removesuffix(ending)
    return os.path.splitext(plain)[1]
