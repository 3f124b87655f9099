"""The files of a variant are copied: companions, and shards side by side, by their size over ranks if there are some.

Each shard is hashed while it is written, and flushed behind the next one's back.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from surgeon import inside, ranks
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.storage import File, Header, flush, naming
from surgeon.model.together import Models
from surgeon.operations import Operation
from surgeon.operations.edits import counted_once, may_change, touched_tensors
from surgeon.region.carried import receive_regions, share_regions
from surgeon.region.region import Region
from surgeon.write.companions import copy_companions
from surgeon.write.shards import Copied, copy_shard

Result = tuple[dict[str, Copied], tuple["Future[None]", ...]]
_TOKEN = ".ranks"  # a file in the staged folder by which a rank finds out that it sees the same folder as rank 0


def copy_all(
    checkpoint: Checkpoint,
    operations: Sequence[Operation],
    regions: Mapping[str, Region],
    folder: Path,
    jobs: int,
    advance: Callable[[int], None],
) -> Result:
    """Copy companions and shards, on all ranks that see the folder; also returns files on their way to the disk.

    What other ranks wrote is on the disk already.
    """
    copied = copy_companions(checkpoint, folder)
    mine: Sequence[Header] = checkpoint.headers
    together = ranks.world() > 1 and len(checkpoint.headers) > 1
    if together:
        token = secrets.token_hex(8)
        with inside.create(folder / _TOKEN) as file:
            file.write(token.encode())
        ranks.share(Copying(str(checkpoint.folder), str(folder.absolute()), token, list(operations)))
        able = [rank for rank, can in enumerate(ranks.gather(True)) if can]
        inside.remove(folder / _TOKEN)
        shares = ranks.share(_by_size(checkpoint.headers, able))
        mine = _named(checkpoint, shares[0])
        share_regions({"": regions})
    shards, flushing = _copy_shards(checkpoint, mine, operations, regions, folder, jobs, advance)
    if together:
        for of_rank in ranks.gather(None)[1:]:
            shards |= of_rank
        advance(checkpoint.data_bytes - sum(header.file_size for header in mine))
    return copied | shards, flushing


@dataclass(frozen=True)
class Copying:
    """Shards of which every rank that sees the folder copies some (see `together.Part`)."""

    model: str
    folder: str
    token: str
    operations: list[Operation]

    def assist(self, models: Models) -> None:
        """Copy this rank's shards, and flush them to the disk."""
        folder = Path(self.folder)
        ranks.gather(models.sees(self.model) and _holds(folder / _TOKEN, self.token))
        names = ranks.share()[ranks.rank()]
        with ExitStack() as open_files:
            regions = receive_regions(open_files)[""]
            if not names:
                ranks.gather({})
                return
            checkpoint = models.checkpoints[self.model]
            mine = _named(checkpoint, names)
            copied, flushing = _copy_shards(
                checkpoint, mine, self.operations, regions, folder, models.jobs, lambda count: None
            )
            for future in flushing:
                future.result()
        ranks.gather(copied)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def _named(checkpoint: Checkpoint, names: Sequence[str]) -> list[Header]:
    return [header for header in checkpoint.headers if header.path.name in names]


def _by_size(headers: Sequence[Header], able: Sequence[int]) -> list[list[str]]:
    """Give each shard, the largest first, to the rank that has least to copy; by rank, names of files."""
    shares: list[list[str]] = [[] for _ in range(ranks.world())]
    load = dict.fromkeys(able, 0)
    for header in sorted(headers, key=lambda header: (-header.file_size, header.path.name)):
        rank = min(load, key=lambda rank: (load[rank], rank))
        shares[rank].append(header.path.name)
        load[rank] += header.file_size
    return shares


def _copy_shards(
    checkpoint: Checkpoint,
    headers: Sequence[Header],
    operations: Sequence[Operation],
    regions: Mapping[str, Region],
    folder: Path,
    jobs: int,
    advance: Callable[[int], None],
) -> Result:
    copied: dict[str, Copied] = {}
    touched = touched_tensors(checkpoint, operations, regions)
    counted = frozenset(counted_once(checkpoint, touched))
    by_file: dict[File, list[str]] = {header.path: [] for header in checkpoint.headers}
    for name in touched:
        for path in dict.fromkeys(info.path for info in may_change(checkpoint, name, operations)):
            by_file[path].append(name)
    disk = ThreadPoolExecutor(1)
    flushing: list[Future[None]] = []

    def job(header: Header, stopping: Event) -> None:
        names = by_file[header.path]
        target = folder / header.path.name
        copied[header.path.name] = copy_shard(checkpoint, header, names, counted, target, operations, regions, stopping)
        flushing.append(disk.submit(flush_file, target))
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


def flush_file(path: Path) -> None:
    """Force a file to disk; an error names it."""
    with naming(path):
        flush(path)
