"""Working on one connection after the other: whoever loses one starts again with a new one."""

from __future__ import annotations

import threading
from collections.abc import Callable

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost
from fluffle.logs import get_logger

log = get_logger(__name__)


def work_with_new_connections(
    connect: Callable[[], Broker], work: Callable[[Broker], None], stop: threading.Event
) -> None:
    """Run `work` on a connection until it returns, anew on a new one whenever one is lost.

    Returns when `work` has, or when `stop` is set while there is no connection. What `connect` raises, such
    as ConnectionLost after all its patience, is the caller's, and so is any other error of `work`.
    """
    while not stop.is_set():
        try:
            broker = connect()
        except ConnectionLost:
            if stop.is_set():
                return
            raise
        with broker:
            try:
                work(broker)
            except ConnectionLost as error:
                log.warning("lost the broker; connecting again", because=str(error))
            else:
                return
