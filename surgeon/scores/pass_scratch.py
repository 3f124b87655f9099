"""Where a pass over a large model keeps its hidden states, and how far it came, so that a killed run goes on.

A scratch folder lies in the cache under a name made from all that the pass depends on. It is used only where the
hidden states are too large for memory; `progress.json` in it is written after what it speaks of has reached the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from surgeon.checkpoint.plain_json import read_object
from surgeon.checkpoint.store import PROGRESS, named_scratch, own_scratch
from surgeon.inside import replacing
from surgeon.scores.backward_pass import Kept, Progressed


@dataclass(frozen=True)
class Scratch:
    """A folder of one pass, locked for this process. `resumes` is False for one that nobody will find again."""

    folder: Path
    resumes: bool

    def progress(self) -> Progressed:
        """Return how far an earlier process came here."""
        try:
            found = read_object(self.folder / PROGRESS)
            return Progressed(int(found["forward"]), None if found["left"] is None else int(found["left"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Progressed()

    def forget(self) -> None:
        """Forget how far any process came."""
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def note(self, progressed: Progressed, kept: Kept) -> None:
        """Note how far the pass came, once the states that it needs to go on are on the disk."""
        if self.resumes:
            row = progressed.forward if progressed.left is None else progressed.left
            kept.hidden.flush(row)
            kept.gradients.flush(row)
            with replacing(self.folder / PROGRESS) as staged:
                staged.write_text(json.dumps(asdict(progressed)), encoding="utf-8")


@contextmanager
def scratch_folder(key: str, resumes: bool) -> Iterator[Scratch]:
    """Yield a pass's scratch folder, deleted when the block ends well; one that another process uses is not shared."""
    with ExitStack() as stack:
        folder = stack.enter_context(named_scratch(key)) if resumes else None
        yield Scratch(folder or stack.enter_context(own_scratch()), folder is not None)
