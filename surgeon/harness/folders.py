"""Is there code in a folder of tasks? The harness would run it; here such a folder is refused.

Its files are YAML, and the harness takes more out of them than data: `!function` names Python to import, metrics that
it does not know are fetched from the Hub as code and run, and some readers of datasets unpickle. What is left are
templates; they are rendered in a sandbox (`running.sandboxed`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from surgeon.checkpoint.hashing import sha256
from surgeon.errors import InputError

_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}  # as the harness does
_PLAIN = ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp")
_READERS = ("json", "csv", "parquet", "text", "arrow")  # of datasets, for files that hold data alone
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REMEDY = (
    "surgeon runs no code out of files. Take it out, or let the harness itself run it: `python -m surgeon.lm_eval run "
    "--model surgeon --model_args out=OUT,variant=NAME --include_path FOLDER --tasks NAME` (docs/tasks.md)"
)


def task_files(folder: Path) -> list[Path]:
    """Return the YAML files of a folder of tasks, in the harness's order, or the one file that is named."""
    if folder.is_file():
        return [folder]
    files = (path for path in folder.glob("**/*.yaml") if not _SKIPPED & set(path.parts))
    return sorted(files, key=lambda path: path.as_posix())


def refuse_code(folder: Path, metrics: Collection[str]) -> None:
    """Make sure that nothing in a folder of tasks, or in one file, would be run as code.

    Args:
        folder: the folder, or a YAML file; files that these include are looked at, too.
        metrics: those that the harness knows by name.

    Raises:
        InputError: there is such a thing, or a file is no YAML.
    """
    problems = [
        f"{path}:{line}: the harness would run {what}"
        for path, root in _parsed(folder)
        for line, what in _code(root, metrics)
    ]
    if problems:
        raise InputError(*problems, _REMEDY)


def content(name: str) -> str | None:
    """Return a hash of a folder's tasks and of the files with their data; None if their data come from elsewhere."""
    hashes = []
    for path, root in _parsed(Path(os.path.expanduser(name))):
        hashes.append(sha256(path.read_bytes()))
        for node in _nodes(root):
            for key, value in node.value if node.id == "mapping" else ():
                files = _texts(value) if key.value == "data_files" else []
                known = key.value != "dataset_path" or value.value in _READERS
                if not known or not all(Path(file).is_file() for file in files):
                    return None
                hashes += [sha256(Path(file).read_bytes()) for file in files]
    return sha256(" ".join(hashes).encode())


def _parsed(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the files of a folder of tasks and those that they include, each once, and the root of its YAML.

    Raises:
        InputError: a file is not there, or is no YAML.
    """
    import yaml

    left, seen = task_files(folder), set[Path]()
    while left:
        path = left.pop(0).resolve()
        if path in seen:
            continue
        seen.add(path)
        try:
            root: Any = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file, which a task includes") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: no YAML ({' '.join(str(error).split())})") from None
        yield path, root
        for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
            left += [path.parent / os.path.expanduser(name) for name in _texts(value) if key.value == "include"]


def _nodes(root: Any, keys: bool = True) -> Iterator[Any]:
    """Yield a node of YAML and all below it in their order, each once, also where they hold themselves."""
    left, seen = [root], set[int]()
    while left:
        node = left.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if node.id == "sequence":
            left += reversed(node.value)
        elif node.id == "mapping":
            left += [part for pair in reversed(node.value) for part in (reversed(pair) if keys else pair[1:])]


def _texts(node: Any) -> list[str]:
    """Return a value that is a text, or those inside of it."""
    return [str(part.value) for part in _nodes(node, keys=False) if part.id == "scalar"]


def _code(root: Any, metrics: Collection[str]) -> Iterator[tuple[int, str]]:
    """Yield the line, and what would be run, of everything below a node."""
    for node in _nodes(root):
        if node.tag.rpartition(":")[2] not in _PLAIN:
            yield node.start_mark.line + 1, f"`{node.tag} {node.value if node.id == 'scalar' else '...'}`"
        for key, value in node.value if node.id == "mapping" else ():
            what = _by_key(str(key.value), value.value if value.id == "scalar" else None, metrics)
            if what is not None and value.tag.startswith("tag:"):
                yield key.start_mark.line + 1, what


def _by_key(key: str, value: str | None, metrics: Collection[str]) -> str | None:
    """Say what the harness would run for a key and its value, None if nothing."""
    if key == "metric" and value is not None and value not in metrics:
        return f"the metric '{value}', which it does not know, as code from a folder or from the Hub"
    if key == "hf_evaluate" and value not in ("false", "False", "null", ""):
        return "a metric as code from the Hub (`hf_evaluate`)"
    if key == "unsafe_code" and value not in ("false", "False", "null", ""):
        return "what models answer (`unsafe_code`)"
    if key in ("use_prompt", "class", "custom_dataset") and value not in ("null", ""):
        return f"what `{key}` names"
    elsewhere = value is not None and _HUB_NAME.fullmatch(value) and not Path(value).exists()
    if key == "dataset_path" and value not in _READERS and not elsewhere:
        return f"a reader of datasets, '{value}'; of files here: {', '.join(_READERS)}"
    return None
