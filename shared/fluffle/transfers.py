"""Says how far a large message is on its way: a bar on a terminal, a log line now and then elsewhere.

Small messages, and large ones on a quick link, are there before anybody asks.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn

from fluffle import logs
from fluffle.topology import MIB

log = logs.get_logger(__name__)

LARGE_BYTES = 10 * MIB
# Who waits for a large message looks so often how far it is.
LOOK_EVERY_S = 0.25
SAY_EVERY_S = 5.0


class Transfer:
    """One message after the other, each shown while it is on its way; `doing` says what is done with it."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._bars: Progress | None = None
        self._size_bytes = self._done_bytes = 0
        self._said_at = 0.0

    def show(self, done_bytes: int, size_bytes: int) -> None:
        """Show how far the message is; a size of 0 says that none is on its way."""
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
        """Show nothing any more; the message is there, or nobody waits for it."""
        if self._bars:
            self._bars.stop()
        self._bars = None
        self._size_bytes = self._done_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bars() -> Progress:
    columns = (BarColumn(), DownloadColumn(binary_units=True), SpeedColumn(), TimeRemainingColumn())
    # It goes away at its end, and log lines scroll by above it.
    return Progress(TextColumn("{task.description}"), *columns, console=logs.console(), transient=True)
