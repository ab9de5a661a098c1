"""Shows the progress of a large message: a bar on a terminal, elsewhere a log line now and then."""

import time

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn

from fluffle import logs
from fluffle.topology import MIB

log = logs.get_logger(__name__)

LARGE_BYTES = 10 * MIB
# How often a reader that waits for a large message asks for its progress.
LOOK_EVERY_S = 0.25
SAY_EVERY_S = 5.0


class Transfer:
    """Shows one message after the other while it is sent or received, which `doing` says."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._bars: Progress | None = None
        self._size_bytes = self._done_bytes = 0
        self._said_at = 0.0

    def show(self, done_bytes: int, size_bytes: int) -> None:
        """Show how much of the message is done; a size of 0 means that there is none."""
        if size_bytes != self._size_bytes or done_bytes < self._done_bytes:
            self.close()
            self._size_bytes, self._said_at = size_bytes, time.monotonic()
            if size_bytes >= LARGE_BYTES and logs.console().is_terminal:
                self._bars = _bars()
                self._bars.add_task(self._doing, total=size_bytes)
                self._bars.start()
        self._done_bytes = done_bytes
        if self._bars:
            self._bars.update(self._bars.task_ids[0], completed=done_bytes)
        elif size_bytes >= LARGE_BYTES and time.monotonic() - self._said_at >= SAY_EVERY_S:
            self._said_at = time.monotonic()
            done_mib, size_mib = round(done_bytes / MIB, 1), round(size_bytes / MIB, 1)
            log.info(f"{self._doing} a large message", done_mib=done_mib, size_mib=size_mib)

    def close(self) -> None:
        """Stop showing the message: it is complete, or nobody waits for it."""
        if self._bars:
            self._bars.stop()
        self._bars = None
        self._size_bytes = self._done_bytes = 0


def _bars() -> Progress:
    columns = (BarColumn(), DownloadColumn(binary_units=True), SpeedColumn(), TimeRemainingColumn())
    # The bar disappears at its end; log lines scroll above it.
    return Progress(TextColumn("{task.description}"), *columns, console=logs.console(), transient=True)
