"""Where a model comes from: shipped with the package, a local folder or file, or the Hugging Face Hub.

Of a model on the Hub only small descriptions are fetched when it is located; its weights stay there, to be read in
parts (`remote.py`), until somebody asks for all of them with `download`.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from surgeon.checkpoint.address import Address, file_address, model_address
from surgeon.checkpoint.hub import fetch_file, fetch_snapshot, hub_errors, refuse_other
from surgeon.checkpoint.remote import RemoteFile, look_up
from surgeon.errors import CheckpointError, EnvironmentFailure, InputError, did_you_mean, present

_MOST_NAMES = 1000  # of a folder that are looked through for what was meant: a hint is not worth a wait
_fetched: dict[str, Path] = {}  # files on the Hub by the names that were looked up since `look_again`
_looked = 0  # how often `look_again` was called
ASSETS = Path(__file__).parent.parent / "assets"

# What tells of the weights, and of what made them; small, and fetched when a repository is looked up.
DESCRIPTIONS = ("config.json", "model.safetensors.index.json", "surgeon.json")
# Weights in other formats are never needed beside safetensors.
HUB_PATTERNS = (
    "*.safetensors", "*.json", "*.txt", "*.model", "*.model.v*", "*.tiktoken", "*.bpe", "*.spm", "*.vocab", "*.jinja",
    "*.py", "*.md", "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a model is. `name` is what the user wrote, `path` a file or folder on this disk.

    For one from the Hub `revision` is its commit, `path` its folder in the Hub's cache, and `remote` holds the files
    directly in it that have not been downloaded.
    """

    name: str
    path: Path
    revision: str | None = None
    remote: Mapping[str, RemoteFile] = field(default_factory=dict, compare=False)

    @property
    def folder(self) -> Path:
        """The folder that holds the files, or will when they have been downloaded."""
        return self.path.parent if self.path.is_file() else self.path

    @property
    def pinned(self) -> str:
        """The name under which the very same files are found again: with the commit, if they are from the Hub."""
        address = model_address(self.name)
        return f"hf://{address.repository}@{self.revision}" if address and self.revision is not None else self.name


def builtin_names() -> list[str]:
    """Names of the models shipped with the package."""
    return sorted(folder.name for folder in ASSETS.iterdir() if (folder / "config.json").is_file())


def locate(name: str) -> Source:
    """Turn `builtin:NAME`, a path, `hf://org/name@revision` or `org/name` into a source.

    Raises:
        CheckpointError: nothing is there under that name.
        InputError: the Hub refuses it.
        EnvironmentFailure: the Hub could not be reached, and its cache does not hold the files.
    """
    if not _is_utf8(name):
        raise CheckpointError(f"{name}: this name is not UTF-8 text; call the folder otherwise, or make a link to it")
    if name.startswith("builtin:"):
        short = name.removeprefix("builtin:")
        if short not in builtin_names():
            raise CheckpointError(f"no builtin model '{short}'{did_you_mean(short, builtin_names())}")
        return Source(name, ASSETS / short)
    path = Path(os.path.expanduser(name))
    if not name.startswith("hf://") and (path.exists() or name.startswith((".", "/", "~")) or not model_address(name)):
        if not path.exists():
            what = f"{name}: no such file or folder, and not a Hub id of the form org/name"
            raise CheckpointError(f"{what}{_nearest(path)}")
        return Source(name, path.resolve())
    address = model_address(name)
    if address is None:
        raise CheckpointError(f"{name}: a Hub address has the form hf://org/name or hf://org/name@revision")
    return _locate_on_hub(name, address)


def _nearest(path: Path) -> str:
    """Return "; did you mean 'x'?" for the entry of the folder that a misspelt path comes nearest to."""
    here, missing = path, path.name
    while not here.exists() and here != here.parent:
        here, missing = here.parent, here.name
    try:
        names = [item.name for item in itertools.islice(here.iterdir(), _MOST_NAMES)]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing, names, n=1, cutoff=0.7)
    return f"; did you mean '{here / close[0] / path.relative_to(here / missing)}'?" if close else ""


def _locate_on_hub(name: str, address: Address) -> Source:
    """Look a repository up, and fetch its small descriptions; without the Hub, take what its cache holds."""
    from huggingface_hub import try_to_load_from_cache

    near = _nearest(Path(name))
    where = name if name.startswith("hf://") else f"{name}: no such folder here{near}; on the Hub"
    try:
        with hub_errors(where):
            commit, files = look_up(address.repository, address.revision)
    except EnvironmentFailure as failure:
        cached = _cached(address)
        if cached is None:
            raise failure from None
        return Source(name, cached, revision=cached.name)
    folder = hub_caches()[0] / f"models--{address.repository.replace('/', '--')}" / "snapshots" / commit
    remote = {}
    for file in files:
        if "/" in file.name:
            continue
        if file.name in DESCRIPTIONS:
            with hub_errors(str(file)):
                fetch_file(address.repository, file.name, commit)
        elif not isinstance(try_to_load_from_cache(address.repository, file.name, revision=commit), str):
            remote[file.name] = file
    return Source(name, folder, commit, remote)


def _cached(address: Address) -> Path | None:
    """Return the folder of a revision in the Hub's cache, if all of it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                address.repository, revision=address.revision, local_files_only=True, allow_patterns=list(HUB_PATTERNS)
            )
        )
    except (LocalEntryNotFoundError, ValueError):
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def download(source: Source) -> Source:
    """Fetch the files of a source that are on the Hub only into the Hub's cache; an interrupted download is resumed.

    Raises:
        InputError: the Hub refuses them.
        EnvironmentFailure: the Hub or the network gave out, or the disk is full.
    """
    if not source.remote:
        return source
    address = present(model_address(source.name))
    with hub_errors(source.name):
        # Under the name that the user gave, so that the cache can tell without the Hub which commit it stands for.
        folder = fetch_snapshot(address.repository, address.revision, HUB_PATTERNS)
        if folder.name != source.revision:  # somebody has pushed since it was looked up
            folder = fetch_snapshot(address.repository, source.revision, HUB_PATTERNS)
        for name, file in source.remote.items():
            refuse_other(folder / name, file.sha256, str(file))
    return Source(source.name, source.path, source.revision)


def is_hub_file(name: str | Path) -> bool:
    """True for the address of one file on the Hub: `hf://org/name/path` or `hf://org/name@revision/path`."""
    return file_address(str(name)) is not None


def local_file(name: str | Path) -> Path:
    """Return the path of a file; one on the Hub is fetched into the Hub's cache, at one commit until `look_again`.

    Raises:
        InputError: the Hub refuses it.
        EnvironmentFailure: the Hub cannot be reached.
    """
    name = str(name)
    address = file_address(name)
    if address is None:
        return Path(os.path.expanduser(name))
    if name not in _fetched:
        with hub_errors(name):
            _fetched[name] = fetch_file(address.repository, address.file, address.revision)
    return _fetched[name]


def pinned_file(name: str) -> str:
    """Return the name under which the very same file is found again: with the commit, if it is from the Hub."""
    address = file_address(name)
    if address is None:
        return name
    parts = local_file(name).parts
    return f"hf://{address.repository}@{parts[parts.index('snapshots') + 1]}/{address.file}"


def look_again() -> None:
    """Forget which commits names on the Hub stood for: whoever begins something new calls this."""
    global _looked
    _looked += 1
    _fetched.clear()


def times_looked() -> int:
    """Return a number that another call of `look_again` changes."""
    return _looked


def hub_caches() -> list[Path]:
    """Folders that belong to the Hub's cache and must never be written to by surgeon."""
    from huggingface_hub import constants

    return [Path(constants.HF_HUB_CACHE).resolve(), Path(constants.HF_HOME).resolve() / "hub"]


def refuse_output_inside(output: Path, source: Path) -> None:
    """Refuse an output that resolves into the source or into a hub cache.

    Raises:
        InputError: it does.
    """
    if not _is_utf8(str(output)):
        raise InputError(
            f"output {output}: this name is not UTF-8 text, as names in recipes and reports are; choose another"
        )
    resolved = Path(os.path.realpath(os.path.expanduser(output)))
    folder = source if source.is_dir() else source.parent
    for forbidden, what in [(folder.resolve(), "the source checkpoint"), *((c, "a Hub cache") for c in hub_caches())]:
        if resolved == forbidden or forbidden in resolved.parents:
            raise InputError(f"output {output} lies inside {what} ({forbidden}); choose a folder elsewhere")


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
