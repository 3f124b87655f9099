"""The output folder: whose it is, one process in it at a time, and what earlier runs left behind there.

Nothing that surgeon did not write is ever removed, and nothing is written among it unless the user insists.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from surgeon.checkpoint.remembered import stored_hash
from surgeon.checkpoint.sources import cache_folder
from surgeon.checkpoint.storage import naming
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.write.integrity import FIGURES, MANIFEST, REGIONS, VARIANTS, read_object
from surgeon.write.marker import MARKER
from surgeon.write.staging import old_folder, staging_folder

LOCK = ".surgeon.lock"
# Names of files that are being written, see `storage.replacing` and `storage.write_stream`.
_PART = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?\.part(\.body\d+)?")
_FOLDERS = (VARIANTS, REGIONS, FIGURES)
# By these the system says that there can be no folder of that name.
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}


@contextmanager
def output_lock(output: Path, owner: str, overwrite: bool = False) -> Iterator[None]:
    """Hold the output folder for one process, on behalf of the recipe `owner`, and clear what killed runs left there.

    Raises:
        InputError: there can be no such folder; or, unless `overwrite`, it holds another recipe's run, or only files
            that surgeon did not write.
        EnvironmentFailure: another process is writing there, or the disk refuses.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in output.iterdir() if _counts(path))
    except OSError as error:
        if error.errno in _NO_FOLDER:
            raise InputError(f"output {output}: {error.strerror}; choose another --output") from None
        raise EnvironmentFailure(f"output {output}: {error.strerror}") from None
    if there and not overwrite:
        _refuse_others(output, owner, there)
    descriptor = os.open(output / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locked(descriptor):
            raise EnvironmentFailure(
                f"{output}: another surgeon is writing here; wait for it or choose another --output"
            )
        with naming(output / LOCK):
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"recipe": owner}).encode(), 0)
        _clear_parts(output)
        _put_back(output / VARIANTS)
        yield
    finally:
        os.close(descriptor)


def _counts(path: Path) -> bool:
    """False for what cannot be in the way: hidden files, and folders of names that surgeon does not use itself."""
    return not path.name.startswith(".") and (path.is_file() or path.name in _FOLDERS)


def _refuse_others(output: Path, owner: str, there: Collection[str]) -> None:
    before = _owner(output)
    if before is None and not (output / LOCK).exists():
        raise InputError(
            f"output {output}: holds {sorted(there)[0]}, which surgeon did not write; choose another --output, or "
            "insist with --overwrite (what surgeon did not write stays)"
        )
    if before is not None and before != owner:
        raise InputError(
            f"output {output}: holds the run of another recipe, '{before}'; choose another --output, or replace that "
            "run with --overwrite"
        )


def _owner(output: Path) -> str | None:
    """Return the name of the recipe whose run the folder holds."""
    for name, key in ((LOCK, "recipe"), (MANIFEST, "name")):
        found = read_object(output / name).get(key)
        if isinstance(found, str):
            return found
    return None


def _locked(descriptor: int, shared: bool = False) -> bool:
    try:
        import fcntl
    except ImportError:
        return True  # no advisory locks on this platform
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _clear_parts(folder: Path) -> None:
    """Remove what was being written when a run was killed; these names are given by nobody else."""
    for path in folder.rglob(".*"):
        if _PART.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def _put_back(variants: Path) -> None:
    """Give an older variant its name again, if the run that was about to replace it was killed just then."""
    for old in variants.glob(f".*{old_folder(Path('x')).suffix}"):
        destination = old.with_name(old.name[1 : -len(old.suffix)])
        if destination.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif (old / MARKER).is_file():
            os.rename(old, destination)


def clear_staging(output: Path, wanted: Collection[str]) -> None:
    """Remove what was staged for variants that are not among the wanted ones."""
    keep = {staging_folder(output / VARIANTS / name) for name in wanted}
    for path in (output / VARIANTS).glob(f".*{staging_folder(Path('x')).suffix}"):
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def cache_in_use() -> Iterator[None]:
    """Hold the cache together with other processes; whoever finds nobody in it removes what killed ones left."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if _locked(descriptor):
            _clear_parts(cache)
        _locked(descriptor, shared=True)
        yield
    finally:
        os.close(descriptor)


def remove_old(
    output: Path, before: Mapping[str, str], now: Mapping[str, str], variants: Collection[str], replaced: bool
) -> list[str]:
    """Remove regions, figures and patches of the run before that this one did not make again; say what is old.

    `before` and `now` are the files by their manifests, `variants` the names of those now. What was changed since is
    not removed but named in the result, relative to `output`; so is a whole variant, unless another recipe's run was
    `replaced`.
    """
    old = []
    for name in sorted(set(before) - set(now)):
        path = output / name
        if ".." in path.parts or not path.is_file() or _is_in_variant(name):
            continue
        if stored_hash(path) == before[name]:
            path.unlink()
        else:
            old.append(name)
    for path in sorted((output / VARIANTS).glob("*")):
        if path.name in variants or not (path / MARKER).is_file():
            continue
        if replaced:
            shutil.rmtree(path)
        else:
            old.append(f"{VARIANTS}/{path.name}")
    return old


def _is_in_variant(name: str) -> bool:
    return name.startswith(f"{VARIANTS}/") and name.count("/") > 1
