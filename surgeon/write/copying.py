"""The files of a variant are copied: companions, and shards side by side, dealt out to a team by their size.

Each shard is hashed while it is written, and flushed behind the next one's back.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from surgeon import inside
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.companions import companions
from surgeon.checkpoint.hashing import file_stamp, sha256
from surgeon.checkpoint.storage import File, Header
from surgeon.errors import CheckpointError
from surgeon.inside import flush
from surgeon.model.workplace import Workplace
from surgeon.operations import Operation
from surgeon.operations.edits import Surgery
from surgeon.region.region import Region
from surgeon.write.shards import Copied, copy_plain_shard, copy_shard, copy_small

Result = tuple[dict[str, Copied], tuple["Future[None]", ...]]
_TOKEN = ".ranks"  # a file in the staged folder by which a rank finds out that it sees the same folder as rank 0


def copy_all(surgery: Surgery, folder: Path, place: Workplace, advance: Callable[[int], None]) -> Result:
    """Copy companions and shards, by all of a team that see the folder; also returns files on their way to the disk.

    What others wrote is on the disk already.
    """
    checkpoint, team = surgery.checkpoint, place.team
    copied = copy_companions(checkpoint, folder)
    if len(checkpoint.headers) == 1:
        shards, flushing = _copy_shards(surgery, checkpoint.headers, folder, place.jobs, advance)
        return copied | shards, flushing
    token = secrets.token_hex(8)
    with inside.create(folder / _TOKEN) as file:
        file.write(token.encode())
    team.begin(
        Copying(
            str(checkpoint.folder), str(folder.absolute()), token, list(surgery.operations), surgery.regions,
            checkpoint.written_plain,
        )
    )  # fmt: skip
    shares = team.divided(by_size(checkpoint))
    inside.remove(folder / _TOKEN)
    mine, background = 0, list[Future[None]]()

    def copy(share: Sequence[Header]) -> dict[str, Copied]:
        nonlocal mine
        mine = sum(header.file_size for header in share)
        shards, flushing = _copy_shards(surgery, share, folder, place.jobs, advance)
        background.extend(flushing)
        return shards

    for shards in team.map(copy, shares):
        copied |= shards
    advance(max(checkpoint.data_bytes - mine, 0))  # what others copied
    return copied, tuple(background)


@dataclass(frozen=True)
class Copying:
    """Shards of which every process that sees the folder copies some."""

    source: str
    folder: str
    token: str
    operations: list[Operation]
    regions: Mapping[str, Region]
    plain: bool = False

    def help(self, place: Workplace) -> None:
        """Copy this process's shards, and flush them to the disk."""
        folder = Path(self.folder)
        try:
            opened = Checkpoint.open(self.source)
            checkpoint = opened.dequantized() if self.plain else opened
            able = checkpoint.folder == Path(self.source) and (folder / _TOKEN).read_text() == self.token
            files = by_size(checkpoint)
        except (CheckpointError, OSError):
            able, files = False, []
        shares = place.team.divided(files, able)

        def copy(share: Sequence[Header]) -> dict[str, Copied]:
            if not share:
                return {}
            surgery = Surgery(checkpoint, self.operations, self.regions)
            copied, flushing = _copy_shards(surgery, share, folder, place.jobs, lambda count: None)
            for future in flushing:
                future.result()
            return copied

        for _ in place.team.map(copy, shares):
            pass


def by_size(checkpoint: Checkpoint) -> list[Header]:
    """Return the weight files, the largest first, as they are dealt out."""
    return sorted(checkpoint.headers, key=lambda header: (-header.file_size, header.path.name))


def _copy_shards(
    surgery: Surgery, headers: Sequence[Header], folder: Path, jobs: int, advance: Callable[[int], None]
) -> Result:
    copied: dict[str, Copied] = {}
    by_file: dict[File, list[str]] = {header.path: [] for header in surgery.checkpoint.headers}
    for name in surgery.touched:
        for path in dict.fromkeys(info.path for info in surgery.stored(name)):
            by_file[path].append(name)
    disk = ThreadPoolExecutor(1)
    flushing: list[Future[None]] = []

    def job(header: Header, stopping: Event) -> None:
        target = folder / header.path.name
        copy = copy_plain_shard if surgery.checkpoint.written_plain else copy_shard
        copied[header.path.name] = copy(surgery, header, by_file[header.path], target, stopping)
        flushing.append(disk.submit(flush, target))
        advance(header.file_size)

    try:
        _side_by_side(job, headers, jobs)
    finally:
        disk.shutdown(wait=False)
    return copied, tuple(flushing)


def _side_by_side(job: Callable[[Header, Event], None], headers: Sequence[Header], jobs: int) -> None:
    """Run a job per shard; when one fails, or the user interrupts, the others stop at their next piece."""
    stopping = Event()
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        running = [pool.submit(job, header, stopping) for header in headers]
        try:
            for future in running:
                future.result()
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def copy_companions(checkpoint: Checkpoint, target: Path) -> dict[str, Copied]:
    """Copy the companion files; returns what was copied, by path in the variant."""
    copied, found = {}, companions(checkpoint)
    for relative in found.kept:
        copied[relative.as_posix()] = copy_small(checkpoint.folder / relative, target / relative)
    for name, content in found.made.items():
        with inside.create(target / name) as file:
            file.write(content)
            copied[name] = Copied(sha256(content), file_stamp(os.fstat(file.fileno())))
    return copied
