"""Names of models and files: addresses on the Hub, and paths of this machine, of which others see the last part.

A folder's name may tell of a person, a customer or a project. What is published names files and folders without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PART = r"[\w.-]{1,96}"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_MODEL = re.compile(rf"(?:hf://)?(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_FILE = re.compile(rf"hf://(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[\w.-]+))?/(?P<file>.+)", re.ASCII)
_ANCHORED = ("/", "~", "./", "../")
_ALWAYS = "file"  # the key of a recipe that holds nothing but paths
_NEVER = ("prompts", "name", "script", "family", "config", "split", "field")  # and those that hold none
_DATASET = re.compile(r"dataset (.+?)((?:, config .+)?, split .+)", re.DOTALL)


@dataclass(frozen=True)
class Address:
    """A repository, a branch, tag or commit of it, and a file in it, as far as they are named."""

    repository: str
    revision: str | None = None
    file: str = ""


def is_repository(text: str) -> bool:
    """True for what can name a repository: `org/name`."""
    return _REPOSITORY.fullmatch(text) is not None


def model_address(text: str) -> Address | None:
    """Read `org/name`, `hf://org/name` or either with `@revision`; None for anything else."""
    match = _MODEL.fullmatch(text)
    return Address(match["repository"], match["revision"]) if match else None


def file_address(text: str) -> Address | None:
    """Read `hf://org/name/path` or `hf://org/name@revision/path`; None for anything else."""
    match = _FILE.fullmatch(text)
    return Address(match["repository"], match["revision"], match["file"]) if match else None


def is_local(name: str) -> bool:
    """True for what would be looked for on this disk, there or not; a Hub id or an address is no such path."""
    if "\n" in name or "\0" in name or "://" in name:
        return False
    if name.startswith(_ANCHORED) or name in (".", ".."):
        return True
    return "/" in name and (model_address(name) is None or os.path.exists(name))


def last_part(name: str) -> str:
    """Return the last part of a path of this machine; any other name as it is."""
    return _last(name) if is_local(name) else name


def without_paths(data: Any, key: str = "") -> Any:
    """Return plain data, such as a recipe, with the last part of every path of this machine in it only."""
    if isinstance(data, Mapping):
        if key == "corpus":  # by language: the path of a file, or more about it
            return {code: _last(text) if isinstance(text, str) else without_paths(text) for code, text in data.items()}
        return {_key(name): without_paths(value, name) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_paths(value, key) for value in data]
    if not isinstance(data, str) or key in _NEVER:
        return data
    return _last(data) if key == _ALWAYS and "://" not in data else last_part(data)


def recipe_without_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's data without the folders of this machine; its output is one below `out/`, by its name."""
    output = {"output": f"out/{recipe.get('name', 'recipe')}"} if "output" in recipe else {}
    return {**without_paths(recipe), **output}


def origin_without_path(origin: str) -> str:
    """Return where a text was drawn from, in the words of a manifest, without the folders of this machine."""
    dataset = _DATASET.fullmatch(origin)
    if dataset is not None:
        return f"dataset {last_part(dataset[1])}{dataset[2]}"
    return origin if origin.startswith("builtin:") else _last(origin)


def _key(name: str) -> str:
    """Return the key of a mapping; some are names of tensors, which may hold a slash."""
    return _last(name) if name.startswith(_ANCHORED) else name


def _last(name: str) -> str:
    return Path(os.path.abspath(os.path.expanduser(name))).name or "folder"
