"""Choice of the number of threads on a machine that others use too.

Two threads that wait for each other on one free core are slower than one thread alone. The chooser compares the
processor time of a step with its wall time: when the threads did not really run side by side, it goes on with one
thread for a while, and then tries again.
"""

from __future__ import annotations

import time

import torch

PATIENCE = 16
SIDE_BY_SIDE = 0.75


class ThreadChooser:
    """Call `before()` and `after()` around every step."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._alone = 0
        self._wall = 0.0
        self._processor = 0.0

    def before(self) -> None:
        """Set the number of threads and start both clocks."""
        torch.set_num_threads(self.most if self._alone == 0 else 1)
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def after(self) -> None:
        """Read both clocks and decide about the next step."""
        if self._alone:
            self._alone -= 1
            return
        running = (time.process_time() - self._processor) / (time.perf_counter() - self._wall)
        if running < SIDE_BY_SIDE * self.most:
            self._alone = PATIENCE
