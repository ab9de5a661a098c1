"""Reaching the broker, and a federation on it, as each kind of part does."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from fluffle.broker import Broker
from fluffle.connector import Connector
from fluffle.errors import TopologyMissing
from fluffle.event_sink import EventSink
from fluffle.events import TurnedAway
from fluffle.hello import say_hello
from fluffle.logs import get_logger
from fluffle.rabbit import RabbitBroker
from fluffle.settings import SharedSettings
from fluffle.topology import Topology

log = get_logger(__name__)


def federation_connector(
    settings: SharedSettings,
    topology: Topology,
    *,
    name: str,
    stop: threading.Event,
    on_wait: Callable[[str], None] | None = None,
) -> Connector:
    """Return what connects whoever looks at a federation, and waits until its queues are there too."""

    def prepare(broker: RabbitBroker) -> None:
        require_federation(broker, topology)

    return Connector(settings, name=name, stop=stop, prepare=prepare, on_wait=on_wait)


def worker_connector(
    settings: SharedSettings, topology: Topology, *, worker: str, stop: threading.Event, event_sink: EventSink
) -> Connector:
    """Return what connects a worker to a federation: it waits until that is there, and takes its name.

    Of each other process that wants the name it tells `event_sink`. Raises NameTaken while another process
    works under the name, and AccessRefused when the broker does not let this user speak for the worker.
    """
    plate = plate_of_this_process()

    def tell_of_rival(plate: str) -> None:
        log.warning(
            "another process wanted this worker's name, and was turned away: stop one of the two, or give "
            "one of them a --name of its own",
            other=plate,
        )
        event_sink(TurnedAway(plate))

    def prepare(broker: RabbitBroker) -> None:
        require_federation(broker, topology)
        # First: its error says what to do when the worker has another name than its user.
        say_hello(broker, topology.updates_in, federation=topology.federation, name=worker)
        broker.take_name(topology, worker, plate=plate, on_rival=tell_of_rival)

    name = f"{topology.federation}/worker/{worker}"
    return Connector(settings, name=name, stop=stop, speaks_for=worker, prepare=prepare)


def evaluator_connector(
    settings: SharedSettings, topology: Topology, *, evaluator: str, stop: threading.Event
) -> Connector:
    """Return what connects an evaluator to a federation, and waits until that is there.

    Raises AccessRefused when the broker does not let this user speak for the evaluator.
    """

    def prepare(broker: RabbitBroker) -> None:
        require_federation(broker, topology)
        say_hello(broker, topology.evaluations_in, federation=topology.federation, name=evaluator)

    name = f"{topology.federation}/evaluator/{evaluator}"
    return Connector(settings, name=name, stop=stop, speaks_for=evaluator, prepare=prepare)


def plate_of_this_process() -> str:
    """Return what tells people which process this is: host, process id, and when it was asked."""
    # RabbitMQ quotes it in an error of 255 bytes. Copied containers differ in the time alone.
    host = re.sub(r"[^A-Za-z0-9._-]", "", socket.gethostname())[:32]
    since = datetime.now(UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")
    return f"process {os.getpid()} on {host}, since {since}Z"


def connect(settings: SharedSettings, *, name: str, stop: threading.Event) -> RabbitBroker:
    """Connect once, as `Connector.connect` does, for a command that ends when its work is done."""
    return Connector(settings, name=name, stop=stop).connect()


@contextmanager
def found_federation(settings: SharedSettings, topology: Topology, *, name: str) -> Iterator[RabbitBroker]:
    """Give a connection to a federation, for whoever asks once and is not to wait for it to come.

    A broker is waited for as in `connect`. Raises TopologyMissing at once.
    """
    with connect(settings, name=name, stop=threading.Event()) as broker:
        require_federation(broker, topology)
        yield broker


def require_federation(broker: Broker, topology: Topology) -> None:
    """Raise TopologyMissing, which says what to do, unless all exchanges and queues are there."""
    try:
        broker.check(topology)
    except TopologyMissing as error:
        raise TopologyMissing(
            f"{error}: start its aggregator, or look for another one with --federation"
        ) from error
