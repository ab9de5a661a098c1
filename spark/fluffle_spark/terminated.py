"""SIGTERM at the driver: what it has started and made is taken down before it ends, as with Ctrl-C."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fluffle.stopping import EXIT_TERMINATED


class Terminated(KeyboardInterrupt):
    """SIGTERM came. After a KeyboardInterrupt Py4J gives the busy connection up; others leave it blocked."""


@contextmanager
def clean_up_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in this block; without effect in a thread, or if the driver handles it."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except Terminated:
        raise SystemExit(EXIT_TERMINATED) from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise Terminated
