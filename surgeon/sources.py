"""Where a model comes from: shipped with the package, a local folder or file, or the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from surgeon.errors import CheckpointError, EnvironmentFailure, InputError, did_you_mean

ASSETS = Path(__file__).parent / "assets"
_HUB_ID = re.compile(r"^(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")

# Weights in other formats are never needed beside safetensors.
HUB_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.md", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Source:
    """A model on this disk. `name` is what the user wrote; `revision` the commit when it came from the Hub."""

    name: str
    path: Path
    revision: str | None = None


def builtin_names() -> list[str]:
    """Names of the models shipped with the package."""
    return sorted(folder.name for folder in ASSETS.iterdir() if (folder / "config.json").is_file())


def locate(name: str) -> Source:
    """Turn `builtin:NAME`, a path, `hf://org/name@revision` or `org/name` into files on this disk.

    Raises:
        CheckpointError: nothing is there under that name.
        EnvironmentFailure: the Hub could not be reached.
    """
    if name.startswith("builtin:"):
        short = name.removeprefix("builtin:")
        if short not in builtin_names():
            raise CheckpointError(f"no builtin model '{short}'{did_you_mean(short, builtin_names())}")
        return Source(name, ASSETS / short)
    path = Path(name).expanduser()
    if not name.startswith("hf://") and (path.exists() or not _HUB_ID.match(name)):
        if not path.exists():
            raise CheckpointError(f"{name}: no such file or folder, and not a Hub id of the form org/name")
        return Source(name, path.resolve())
    match = _HUB_ID.match(name)
    if match is None:
        raise CheckpointError(f"{name}: a Hub address has the form hf://org/name or hf://org/name@revision")
    return _download(name, match["repo"], match["revision"])


def _download(name: str, repo: str, revision: str | None) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=list(HUB_PATTERNS))
    except GatedRepoError:
        raise CheckpointError(
            f"{name}: the repository is gated; accept its terms on the Hub and run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: no such folder here, and no such repository on the Hub (or it is private: run `hf auth login`)"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{name}: the repository has no revision '{revision}'") from None
    except LocalEntryNotFoundError:
        raise EnvironmentFailure(
            f"{name}: no such folder here, and the Hub cannot be reached to look for a repository of that name"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise EnvironmentFailure(f"{name}: the Hub did not answer: {error}") from None
    path = Path(folder)
    return Source(name, path, revision=path.name)


def hub_caches() -> list[Path]:
    """Folders that belong to the Hub's cache and must never be written to by surgeon."""
    from huggingface_hub import constants

    return [Path(constants.HF_HUB_CACHE).resolve(), Path(constants.HF_HOME).resolve() / "hub"]


def refuse_output_inside(output: Path, source: Path) -> None:
    """Refuse an output that resolves into the source or into a hub cache.

    Raises:
        InputError: it does.
    """
    resolved = Path(os.path.realpath(output.expanduser()))
    folder = source if source.is_dir() else source.parent
    for forbidden, what in [(folder.resolve(), "the source checkpoint"), *((c, "a Hub cache") for c in hub_caches())]:
        if resolved == forbidden or forbidden in resolved.parents:
            raise InputError(f"output {output} lies inside {what} ({forbidden}); choose a folder elsewhere")


def cache_folder() -> Path:
    """Where scores and regions are kept: `$SURGEON_CACHE`, else `surgeon` in the user's cache folder."""
    chosen = os.environ.get("SURGEON_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "surgeon"
