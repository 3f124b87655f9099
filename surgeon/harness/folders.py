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


def task_files(place: Path) -> list[Path]:
    """Return the YAML files of a folder of tasks, in the harness's order, or the one file that is named."""
    if place.is_file():
        return [place]
    found = (path for path in place.glob("**/*.yaml") if not _SKIPPED & set(path.parts))
    return sorted(found, key=lambda path: path.as_posix())


def refuse_code(place: Path, metrics: Collection[str]) -> None:
    """Make sure that nothing in a folder of tasks, or in one file, would be run as code.

    Args:
        place: the folder, or a YAML file; files that these include are looked at, too.
        metrics: those that the harness knows by name.

    Raises:
        InputError: there is such a thing, or a file is no YAML.
    """
    problems: list[str] = []
    seen: set[Path] = set()
    left = task_files(place)
    while left:
        path = left.pop(0).resolve()
        if path in seen:
            continue
        seen.add(path)
        root = _compose(path)
        problems += [f"{path}:{line}: the harness would run {what}" for line, what in _code(root, path, metrics)]
        left += [path.parent / os.path.expanduser(name) for name in _included(root)]
    if problems:
        raise InputError(*problems, _REMEDY)


def content(name: str) -> str | None:
    """Return a hash of a folder's tasks and of the files with their data; None if their data come from elsewhere."""
    parts, left = [], task_files(Path(os.path.expanduser(name)))
    seen: set[Path] = set()
    while left:
        path = left.pop(0).resolve()
        if path in seen:
            continue
        seen.add(path)
        root = _compose(path)
        left += [path.parent / os.path.expanduser(name) for name in _included(root)]
        parts.append(sha256(path.read_bytes()))
        readers, files = [], []
        for key, value in _pairs(root):
            readers += [value.value] if key == "dataset_path" else []
            files += _texts(value) if key == "data_files" else []
        if any(reader not in _READERS for reader in readers) or not all(Path(file).is_file() for file in files):
            return None
        parts += [sha256(Path(file).read_bytes()) for file in files]
    return sha256(" ".join(parts).encode())


def _pairs(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of all mappings below a node."""
    import yaml

    left, seen = [root], set()
    while left:
        node = left.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        for part in node.value:
            if isinstance(node, yaml.MappingNode):
                yield str(part[0].value), part[1]
            left += part if isinstance(node, yaml.MappingNode) else [part]


def _texts(node: Any) -> list[str]:
    """Return a value that is a text, or those inside of it."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return [str(node.value)]
    parts = [part[1] for part in node.value] if isinstance(node, yaml.MappingNode) else node.value
    return [text for part in parts for text in _texts(part)]


def _compose(path: Path) -> Any:
    import yaml

    try:
        return yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, which a task includes") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no YAML ({' '.join(str(error).split())})") from None


def _included(root: Any) -> list[str]:
    import yaml

    if not isinstance(root, yaml.MappingNode):
        return []
    nodes = [value for key, value in root.value if key.value == "include"]
    nodes = [item for node in nodes for item in (node.value if isinstance(node, yaml.SequenceNode) else [node])]
    return [str(node.value) for node in nodes]


def _code(root: Any, path: Path, metrics: Collection[str]) -> Iterator[tuple[int, str]]:
    """Yield the line, and what would be run, of everything below a node."""
    import yaml

    left, seen = [root], set()
    while left:
        node = left.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        line = node.start_mark.line + 1
        if node.tag.rpartition(":")[2] not in _PLAIN:
            yield line, f"`{node.tag} {node.value if isinstance(node, yaml.ScalarNode) else '...'}`"
        if isinstance(node, yaml.SequenceNode):
            left += reversed(node.value)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                said = value.value if isinstance(value, yaml.ScalarNode) else None
                what = _by_key(str(key.value), said, metrics)
                if what is not None and value.tag.startswith("tag:"):
                    yield key.start_mark.line + 1, what
            left += [part for pair in reversed(node.value) for part in reversed(pair)]


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
