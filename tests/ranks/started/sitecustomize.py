"""Imported by every Python that the test of the launcher starts: in a rank, what the test has to change there.

Hidden states go to disk, each sweep says where it began, and on the first attempt the last rank is killed in it,
where SURGEON_RANK_KILLS is set.
"""

import os
import signal
import sys

if "TORCHELASTIC_RESTART_COUNT" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
    from surgeon.model import budgets
    from surgeon.scores.score_pass import ScorePass, Scratch

    budgets.HIDDEN_BYTES = 0
    _note, _start, _left = Scratch.note, ScorePass.start, [8]
    _victim = (
        "SURGEON_RANK_KILLS" in os.environ
        and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        and os.environ["RANK"] == "1"
    )

    def _counted(self, *rest):  # type: ignore[no-untyped-def]
        _note(self, *rest)
        _left[0] -= 1
        if _left[0] == 0 and _victim:
            os.kill(os.getpid(), signal.SIGKILL)

    def _told(self, scratch):  # type: ignore[no-untyped-def]
        found = _start(self, scratch)
        print(f"began: {found.forward} {found.left}", file=sys.stderr, flush=True)
        return found

    Scratch.note, ScorePass.start = _counted, _told
