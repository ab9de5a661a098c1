"""Clean shutdown: the first SIGTERM or Ctrl-C asks a process to finish, a second Ctrl-C ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from fluffle.logs import get_logger

log = get_logger(__name__)

# A container gets 10 s to stop. A task that computes without returning to Python gets less.
LEAVE_AFTER_S = 4.5
EXIT_TERMINATED = 128 + signal.SIGTERM


class StopRequested(BaseException):
    """Interrupts a running function of a task when the process is asked to stop.

    Not an Exception, so that a task that catches every Exception does not catch this one.
    """


class StopSignal(threading.Event):
    """An event that SIGTERM and Ctrl-C set; it can also interrupt a function that takes long."""

    def __init__(self) -> None:
        super().__init__()
        self._sections = 0
        self._is_interruptible = False

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal raise StopRequested in this block, which must run in the main thread.

        If the block does not end within LEAVE_AFTER_S of the signal, the process exits; only work that was
        not confirmed is lost. Raises StopRequested at once if the signal came before.
        """
        self._sections += 1
        self._is_interruptible = True
        try:
            if self.is_set():
                raise StopRequested
            yield
        finally:
            self._is_interruptible = False

    def ask(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.set()
        if self._is_interruptible:
            timer = threading.Timer(LEAVE_AFTER_S, self._leave, [self._sections])
            timer.daemon = True
            timer.start()
            raise StopRequested

    def _leave(self, section: int) -> None:
        if self._is_interruptible and self._sections == section:
            log.warning("the task does not stop; exiting without it", seconds=LEAVE_AFTER_S)
            os._exit(EXIT_TERMINATED)


def stop_on_signals() -> StopSignal:
    """Return an event that SIGTERM and SIGINT set; for the main thread of a process."""
    stop = StopSignal()
    signal.signal(signal.SIGTERM, stop.ask)
    signal.signal(signal.SIGINT, stop.ask)
    return stop


def interrupting(stop: threading.Event) -> AbstractContextManager[None]:
    """Let the signal that sets this event interrupt the block; an event of another class does not."""
    return stop.interrupting() if isinstance(stop, StopSignal) else nullcontext()
