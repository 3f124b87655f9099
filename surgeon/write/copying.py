"""The files of a variant are copied: companions, and shards side by side, dealt out to a team by their size.

Each shard is hashed, and sent to the disk, while it is written.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

_TOKEN = ".ranks"  # a file in the staged folder by which a rank finds out that it sees the same folder as rank 0


def copy_all(surgery: Surgery, folder: Path, workplace: Workplace, advance: Callable[[int], None]) -> dict[str, Copied]:
    """Copy companions and shards, by all of a team that see the folder; what others wrote is on the disk already."""
    checkpoint, team = surgery.checkpoint, workplace.team
    copied = copy_companions(checkpoint, folder)
    if len(checkpoint.headers) == 1:
        return copied | _copy_shards(surgery, checkpoint.headers, folder, workplace.jobs, advance)
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
    mine = 0

    def copy(share: Sequence[Header]) -> dict[str, Copied]:
        nonlocal mine
        mine = sum(header.file_size for header in share)
        return _copy_shards(surgery, share, folder, workplace.jobs, advance)

    for shards in team.map(copy, shares):
        copied |= shards
    advance(max(checkpoint.data_bytes - mine, 0))  # what others copied
    return copied


@dataclass(frozen=True)
class Copying:
    """Shards of which every process that sees the folder copies some."""

    source: str
    folder: str
    token: str
    operations: list[Operation]
    regions: Mapping[str, Region]
    plain: bool = False

    def help(self, workplace: Workplace) -> None:
        """Copy this process's shards, and flush them to the disk."""
        folder = Path(self.folder)
        try:
            opened = Checkpoint.open(self.source)
            checkpoint = opened.dequantized() if self.plain else opened
            able = checkpoint.folder == Path(self.source) and (folder / _TOKEN).read_text() == self.token
            files = by_size(checkpoint)
        except (CheckpointError, OSError):
            able, files = False, []
        shares = workplace.team.divided(files, able)

        def copy(share: Sequence[Header]) -> dict[str, Copied]:
            if not share:
                return {}
            surgery = Surgery(checkpoint, self.operations, self.regions)
            copied = _copy_shards(surgery, share, folder, workplace.jobs, lambda count: None)
            for name in copied:
                flush(folder / name)
            return copied

        for _ in workplace.team.map(copy, shares):
            pass


def by_size(checkpoint: Checkpoint) -> list[Header]:
    """Return the weight files, the largest first, as they are dealt out."""
    return sorted(checkpoint.headers, key=lambda header: (-header.file_size, header.path.name))


def _copy_shards(
    surgery: Surgery, headers: Sequence[Header], folder: Path, jobs: int, advance: Callable[[int], None]
) -> dict[str, Copied]:
    copied: dict[str, Copied] = {}
    by_file: dict[File, list[str]] = {header.path: [] for header in surgery.checkpoint.headers}
    for name in surgery.touched:
        for path in dict.fromkeys(info.path for info in surgery.stored(name)):
            by_file[path].append(name)

    def job(header: Header, stopping: Event) -> None:
        copy = copy_plain_shard if surgery.checkpoint.written_plain else copy_shard
        name = header.path.name
        copied[name] = copy(surgery, header, by_file[header.path], folder / name, stopping)
        advance(header.file_size)

    _side_by_side(job, headers, jobs)
    return copied


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
    copied, beside = {}, companions(checkpoint)
    for relative in beside.files:
        copied[relative.as_posix()] = copy_small(checkpoint.folder / relative, target / relative)
    for name, content in beside.added.items():
        with inside.create(target / name) as file:
            file.write(content)
            copied[name] = Copied(sha256(content), file_stamp(os.fstat(file.fileno())))
    return copied
