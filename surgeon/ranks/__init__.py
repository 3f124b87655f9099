"""Several processes at one recipe, as torchrun starts them. The only room that knows of ranks.

`group` is who is who, and what passes between two of them; `team` deals jobs out and collects their results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from surgeon.ranks import group

if TYPE_CHECKING:
    from surgeon.ranks.team import Ranks


@contextmanager
def joined(device: str) -> Iterator[Ranks | None]:
    """Meet the other ranks, if a launcher has started any; yields their team, or None. `device` is this rank's.

    In a program that has a process group of its own each process that comes here works alone.

    Raises:
        RankLost: they do not all come within the time-out.
    """
    with group.joined(device):
        if group.world() == 1:
            yield None
            return
        from surgeon.ranks.team import Ranks

        yield Ranks(group.rank(), group.world(), group.own_device(device))
