"""A gate for tasks whose rounds begin when a test lets them: no test of faults depends on speed.

The file `rounds` in the working folder says how many rounds a process may finish in its life; at the start of
each it makes a file `begun-N`.
"""

import time
from pathlib import Path

from fluffle.task import Progress


class Gate:
    """Counts the rounds of a process, and holds each up until it may go on."""

    def __init__(self) -> None:
        self._begun = 0

    def begin_round(self, progress: Progress) -> None:
        """Wait for the test's word; whoever stops the worker ends it."""
        self._begun += 1
        Path(f"begun-{self._begun}").touch()
        while int(Path("rounds").read_text()) < self._begun:
            progress(0, 1)
            time.sleep(0.02)
