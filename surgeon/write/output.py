"""The output folder: whose it is, one process in it at a time, and what earlier runs left behind there.

Nothing that surgeon did not write is ever removed, and nothing is written among it unless the user insists. What the
folder's own files say of others is believed only where a run could have said it, and no link in it is followed.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from surgeon import inside
from surgeon.checkpoint.fingerprint import stored_hash
from surgeon.checkpoint.hashing import file_hash
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.inside import lock, naming, remove_abandoned, replacing
from surgeon.model.results import Figures
from surgeon.write.marker import FIGURES, MANIFEST, MARKER, REGIONS, SAMPLES, VARIANTS, read_own
from surgeon.write.staging import old_folder, staging_folder

LOCK = ".surgeon.lock"
# What a run writes beside its variants' folders and does not write each time; a manifest may name anything.
_MADE = re.compile(
    rf"{REGIONS}/\w[\w.-]*\.region\.safetensors|{FIGURES}/\w[\w.-]*\.(svg|png)|{VARIANTS}/\w[\w.-]*\.patch\.safetensors"
    rf"|{SAMPLES}/\w+/\w[\w.-]*\.jsonl"
)
_FOLDERS = (VARIANTS, REGIONS, FIGURES, SAMPLES)
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
        names = sorted(path.name for path in output.iterdir() if _counts(path))
    except OSError as error:
        if error.errno in _NO_FOLDER:
            raise InputError(f"output {output}: {error.strerror}; choose another --output") from None
        raise EnvironmentFailure(f"output {output}: {error.strerror}") from None
    if names and not overwrite:
        _refuse_others(output, owner, names)
    with inside.no_links_below(output):
        for name in _FOLDERS:
            inside.refuse_link(output / name)
        descriptor = inside.open_file(output / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            _lock(descriptor, output)
            with naming(output / LOCK):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps({"recipe": owner}).encode(), 0)
            remove_abandoned(output)
            _put_back(output / VARIANTS)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int, output: Path) -> None:
    if os.fstat(descriptor).st_nlink > 1:  # it is written to where it is
        raise InputError(f"{output / LOCK}: a file that has other names too; remove it, or choose another --output")
    try:
        ours = lock(descriptor)
    except OSError as error:
        raise EnvironmentFailure(
            f"{output}: this file system gives no locks ({error.strerror}), so nothing keeps two runs apart; choose "
            "another --output"
        ) from None
    if not ours:
        raise EnvironmentFailure(f"{output}: another surgeon is writing here; wait for it or choose another --output")


def _counts(path: Path) -> bool:
    """False for what cannot be in the way: hidden files, and folders of names that surgeon does not use itself."""
    return not path.name.startswith(".") and (path.is_file() or path.name in _FOLDERS)


def _refuse_others(output: Path, owner: str, names: Collection[str]) -> None:
    before = _owner(output)
    if before is None and not inside.is_plain_file(output, LOCK):
        raise InputError(
            f"output {output}: holds {sorted(names)[0]}, which surgeon did not write; choose another --output, or "
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
        owner = read_own(output / name).get(key) if inside.is_plain_file(output, name) else None
        if isinstance(owner, str):
            return owner
    return None


def _put_back(variants: Path) -> None:
    """Give an older variant its name again, if the run that was about to replace it was killed just then."""
    for old in _folders_of(variants, old_folder):
        destination = old.with_name(old.name[1 : -len(old.suffix)])
        if os.path.lexists(destination):
            inside.remove_folder(old)
        elif inside.is_plain_file(old, MARKER):
            inside.rename(old, destination)


def clear_staging(output: Path, wanted: Collection[str]) -> None:
    """Remove what was staged for variants that are not among the wanted ones."""
    keep = {staging_folder(output / VARIANTS / name) for name in wanted}
    for path in _folders_of(output / VARIANTS, staging_folder):
        if path not in keep:
            inside.remove_folder(path)


def _folders_of(variants: Path, hidden: Callable[[Path], Path]) -> list[Path]:
    """Return the hidden folders of one kind that are there."""
    return [path for path in variants.glob(f".*{hidden(Path('x')).suffix}") if inside.is_folder(path)]


def remove_old(
    output: Path, before: Mapping[str, str], now: Mapping[str, str], variants: Collection[str], replaced: bool
) -> list[str]:
    """Remove regions, figures, patches and samples of the run before that this one did not make again; say what is old.

    `before` and `now` are the files by their manifests, `variants` the names of those now. The manifest of a folder
    that somebody else made may name any file of this machine, with its hash: only what a run could have made below
    `output` is removed, and nothing to which a link leads. What was changed since is
    not removed but named in the result, relative to `output`; so is a whole variant, unless another recipe's run was
    `replaced`.
    """
    old = []
    for name in sorted(set(before) - set(now)):
        if not _MADE.fullmatch(name) or not inside.is_plain_file(output, name):
            continue
        if stored_hash(output / name) == before[name]:
            inside.remove(output / name)
        else:
            old.append(name)
    for path in sorted((output / VARIANTS).glob("*")):
        if path.name in variants or not inside.is_folder(path) or not inside.is_plain_file(path, MARKER):
            continue
        if replaced:
            inside.remove_folder(path)
        else:
            old.append(f"{VARIANTS}/{path.name}")
    return old


def write_samples(output: Path, figures_by_variant: Mapping[str, Mapping[str, Figures]]) -> dict[Path, str]:
    """Write what figures, by variant and kind, have of them; returns the files with their SHA-256."""
    files = {}
    for variant, by_kind in figures_by_variant.items():
        for kind, figures in by_kind.items():
            if not figures.samples:
                continue
            path = output / SAMPLES / kind / f"{variant}.jsonl"
            with replacing(path) as part, inside.create(part) as file:
                for sample in figures.samples:
                    file.write((json.dumps(sample, ensure_ascii=False) + "\n").encode())
            files[path] = file_hash(path)
    return files
