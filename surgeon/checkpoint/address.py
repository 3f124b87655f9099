"""Addresses on the Hugging Face Hub: the one place that says how they are written."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = r"[\w.-]{1,96}"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_MODEL = re.compile(rf"(?:hf://)?(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_FILE = re.compile(rf"hf://(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[\w.-]+))?/(?P<file>.+)", re.ASCII)


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
