"""The Python files in which a checkpoint's configs name classes, and those that these import; scripts are none.

Found as transformers finds them when it is told to trust them. Nothing here is imported or run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surgeon.checkpoint.plain_json import NotPlain, read_object

_NAMING = (
    "config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
    "image_processor_config.json", "video_preprocessor_config.json", "generation_config.json",
)  # fmt: skip
_LONGEST = 1 << 22  # bytes of a file that is read; code by hand has a tenth of it
_CLASS = re.compile(r"(?P<module>[\w/-]+)\.\w+", re.ASCII)  # one of another repository has `--` before its name
_RELATIVE = re.compile(r"^\s*(?:from\s+\.([\w.]+)\s+import\b|import\s+\.([\w.]+)\s*$)", re.ASCII | re.MULTILINE)
_MOST = 200  # files, more than any model brings


def own_code(folder: Path) -> frozenset[Path]:
    """Return the Python files, relative to the folder, that its configs name by `auto_map`, with what they import."""
    waiting = [Path(f"{module}.py") for name in _NAMING for module in _modules(folder / name)]
    found: set[Path] = set()
    while waiting and len(found) < _MOST:
        path = waiting.pop()
        if path in found or path.is_absolute() or ".." in path.parts or not (folder / path).is_file():
            continue
        found.add(path)
        waiting += [path.parent / f"{name.replace('.', '/')}.py" for name in _imports(folder / path)]
    return frozenset(found)


def _modules(config: Path) -> Iterator[str]:
    if not config.is_file():
        return
    try:
        yield from _named(read_object(config, _LONGEST, unique=False))
    except (NotPlain, OSError):  # said where the file is read for what it means
        return


def _named(value: Any) -> Iterator[str]:
    """Yield the modules that `auto_map` names, at whatever depth it stands."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from _of_map(inner) if key == "auto_map" else _named(inner)


def _of_map(value: Any) -> Iterator[str]:
    """Yield the modules of classes: in texts, or in lists of a slow and a fast tokenizer."""
    if isinstance(value, str) and "--" not in value:
        match = _CLASS.fullmatch(value)
        if match:
            yield match["module"]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _of_map(inner)


def _imports(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("utf-8", "replace")
    except OSError:
        return
    for match in _RELATIVE.finditer(text):
        yield match[1] or match[2]
