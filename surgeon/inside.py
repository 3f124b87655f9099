"""Below a folder that others may have filled, files are reached by handles of folders, and never through a link.

The one place that makes, opens, replaces and removes files of an output folder. The folder itself may be a link, since
the user named it; what lies in it is somebody's, and a link there could lead anywhere. Of a path outside every folder
that is held (see `no_links_below`) only the last part is looked at in this way.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from surgeon.errors import InputError

_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # and no waiting for the other end of a pipe
_held: list[Path] = []
# Names of files that are being written, see `replacing` and `write_stream`.
_PART = re.compile(r"(\..+\.\d+(?:-[0-9a-f]{8})?\.part)(?:\.body\d+)?")


@contextmanager
def no_links_below(folder: Path) -> Iterator[None]:
    """While this lasts nothing below a folder is reached through a link, by whichever function of this module."""
    root = folder.absolute()
    _held.append(root)
    try:
        yield
    finally:
        _held.remove(root)


@contextmanager
def place_of(path: Path, make: bool = False) -> Iterator[tuple[int, str]]:
    """Yield a handle of the folder in which a path lies, and its name there; `make` makes missing folders.

    Raises:
        InputError: a link is on the way, or the path leads out of the folder that is held.
        OSError: a folder is missing, or is none.
    """
    path = path.absolute()
    root = max((held for held in _held if held in path.parents), key=lambda held: len(held.parts), default=path.parent)
    way = path.relative_to(root).parts
    if ".." in way:
        raise InputError(f"{path}: leads out of {root}")
    if make:
        root.mkdir(parents=True, exist_ok=True)
    folder, reached = os.open(root, _FOLDER), root
    try:
        for name in way[:-1]:
            reached = reached / name
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=folder)
            with _refusing_links(reached):
                below = os.open(name, _FOLDER | _NO_LINK, dir_fd=folder)
            os.close(folder)
            folder = below
        yield folder, way[-1]
    except OSError as error:
        if not os.path.isabs(error.filename or ""):  # the system knows only the name in the folder
            error.filename = str(path)
        raise
    finally:
        os.close(folder)


def open_file(path: Path, flags: int) -> int:
    """Open a plain file, as `os.open` does; with `os.O_CREAT` the folders on the way are made as well.

    Raises:
        InputError: it is a link or no file, or a link is on the way.
        OSError: it cannot be opened.
    """
    with place_of(path, make=bool(flags & os.O_CREAT)) as (folder, name), _refusing_links(path):
        descriptor = os.open(name, flags | _NO_LINK, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: no plain file; remove it, or choose another --output")
    return descriptor


def create(path: Path) -> FileIO:
    """Open a plain file for writing, emptied if it is there; the folders on the way are made."""
    return FileIO(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb")


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name; a file or link of that name is replaced, and never followed."""
    with place_of(source) as (folder, name), place_of(target, make=True) as (other, new):
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=other)


def remove(path: Path) -> None:
    """Remove a file, or a link and not what it leads to; one that is not there is as good as removed."""
    with suppress(FileNotFoundError), place_of(path) as (folder, name):
        os.unlink(name, dir_fd=folder)


def remove_folder(path: Path) -> None:
    """Remove a folder and all in it, as far as the system lets us; a link of that name stays."""
    with suppress(FileNotFoundError), place_of(path):
        shutil.rmtree(path, ignore_errors=True)  # goes down by handles itself


def new_folder(path: Path) -> None:
    """Make a folder, in place of an older one of that name.

    Raises:
        InputError: a link has that name, or is on the way.
    """
    remove_folder(path)
    with place_of(path, make=True) as (folder, name), _refusing_links(path):
        os.mkdir(name, dir_fd=folder)


def is_folder(path: Path) -> bool:
    """True for a folder; False for a link to one."""
    return path.is_dir() and not path.is_symlink()


def is_plain_file(root: Path, name: str | Path) -> bool:
    """True if `name` is a file below a folder to which no link leads; False for anything else, there or not."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        return False
    try:
        folders = [os.lstat(root.joinpath(*parts[:count])).st_mode for count in range(1, len(parts))]
        return all(map(stat.S_ISDIR, folders)) and stat.S_ISREG(os.lstat(root / name).st_mode)
    except (OSError, ValueError):  # the latter for a name that no file can have
        return False


def is_own_file(root: Path, name: str | Path) -> bool:
    """True for a plain file below a folder, and for a file in a snapshot of the Hub's cache: a link to its blob."""
    if is_plain_file(root, name):
        return True
    path, home = root / name, root.resolve()
    if home.parent.name != "snapshots" or Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    if not all(is_folder(folder) for folder in list(path.parents)[: len(Path(name).parts) - 1]):
        return False
    real = path.resolve()
    return real.parent == home.parent.parent / "blobs" and real.is_file()


def refuse_link(path: Path) -> None:
    """Refuse to go on where a link lies in an output folder.

    Raises:
        InputError: it is a link.
    """
    if path.is_symlink():
        raise InputError(
            f"{path}: a link, and surgeon follows none that lies in an output folder; remove it, or choose another "
            "--output"
        )


@contextmanager
def _refusing_links(path: Path) -> Iterator[None]:
    """Put the path into errors of the system, and say it where the reason is a link."""
    try:
        yield
    except OSError as error:
        refuse_link(path)
        error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write beside `path`; flush it to disk and rename it when the block ends well.

    What is not `durable` may be empty after a power cut. The file is there already, empty, and locked until it gets its
    name or goes: so whoever clears up knows that somebody is writing it, see `remove_abandoned`.
    """
    with naming(path):
        staged, descriptor = _begin(path)
        try:
            yield staged
            if durable:
                flush(staged)
            rename(staged, path)
        finally:
            remove(staged)
            os.close(descriptor)


def _begin(path: Path) -> tuple[Path, int]:
    """Make and lock the file that is written; its name is like no other's, also not of a process elsewhere."""
    while True:
        staged = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        descriptor = open_file(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            ours = lock(descriptor)
        except OSError:  # no locks on this file system, so nobody clears up there either
            ours = True
        if ours and is_still(descriptor, staged):
            return staged, descriptor
        os.close(descriptor)  # somebody who was clearing up was faster


def remove_abandoned(folder: Path) -> None:
    """Remove what was being written below a folder when its process was killed; nobody else gives these names."""
    for path in sorted(folder.rglob(".*.part*")):  # before a file the bodies that it was to be made of
        match = _PART.fullmatch(path.name)
        if match is None or not is_plain_file(folder, path.relative_to(folder)):
            continue
        whole = path.with_name(match[1])
        with held(whole) as ours:
            if ours or not whole.exists():
                remove(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name into errors of the system that lack it, as those of writing do."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def flush(path: Path) -> None:
    """Force a file or folder entry to disk, so that a rename never exposes unwritten data."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Reserve disk blocks, or only the length where the platform has no call for that."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, offset, length)
    else:
        os.ftruncate(descriptor, offset + length)


def lock(descriptor: int) -> bool:
    """Lock an open file, for as long as it stays open; False if somebody else has.

    Raises:
        OSError: the file system gives no locks.
    """
    import fcntl  # not on every platform

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold the lock on a file that is there; yields False if somebody else has it, or nobody can tell."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        got = False
        with suppress(OSError):
            got = lock(descriptor)
        yield got and is_still(descriptor, path)
    finally:
        os.close(descriptor)


def is_still(descriptor: int, path: Path) -> bool:
    """True if a path still leads to the file that was opened by it, and that nobody removed meanwhile."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(descriptor))
