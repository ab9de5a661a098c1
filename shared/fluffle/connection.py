"""Connect to the broker: which errors are worth another try, for how long, and what each part then checks."""

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

from fluffle.broker import Broker
from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConfigError,
    ConnectionLost,
    LimitReached,
    LoginRefused,
    QueueFull,
    TopologyMissing,
)
from fluffle.event_sink import EventSink
from fluffle.events import TurnedAway
from fluffle.logs import get_logger
from fluffle.rabbit import RabbitBroker
from fluffle.reconnecting import wait_before
from fluffle.record import Hello
from fluffle.settings import SharedSettings
from fluffle.topology import Exchange, Topology
from fluffle.wire import encode_hello

log = get_logger(__name__)

# At the first start each of these is a mistake. Later an operator may be replacing a password or a
# certificate, or making a user or a virtual host again, which takes several steps.
REFUSED = (LoginRefused, AccessRefused, ConfigError)


class Patience:
    """How long to go on trying to connect. Pure: the time is an argument, in seconds.

    A broker or a federation that is not there, and a limit that is reached, are retried for
    `connect_timeout_s`. A refused login and a missing right are errors at once, unless the broker accepted
    this part before: then they are retried for `login_patience_s`.
    """

    def __init__(self, *, connect_timeout_s: float, login_patience_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._login_patience_s = login_patience_s
        self._was_accepted = False
        self._since = 0.0
        self._refused_since: float | None = None

    def begin(self, now: float) -> None:
        """Note that a connection is needed from now on."""
        self._since = now

    def accepted(self) -> None:
        """Note that the broker has accepted this part, with all the rights that it needs."""
        self._was_accepted = True
        self._refused_since = None

    def allows_retry(self, error: BrokerError | ConfigError, now: float) -> bool:
        """Tell whether to try again after this error."""
        if not isinstance(error, REFUSED):
            self._refused_since = None
            may_pass = isinstance(error, (ConnectionLost, LimitReached, TopologyMissing))
            return may_pass and now - self._since < self._connect_timeout_s
        if not self._was_accepted:
            return False
        if self._refused_since is None:
            self._refused_since = now
        return now - self._refused_since < self._login_patience_s


class Connector:
    """Makes the connections of one part, one after the other."""

    def __init__(
        self,
        settings: SharedSettings,
        *,
        name: str,
        stop: threading.Event,
        speaks_for: str | None = None,
        prepare: Callable[[RabbitBroker], None] = lambda _: None,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Connect as the settings say; `name` is what RabbitMQ's UI shows.

        `prepare` is called with each new connection; an error of it counts as one of connecting. `on_wait` is
        called before each wait, with the reason for it.
        """
        self._settings = settings
        self._stop = stop
        self._prepare = prepare
        self._on_wait = on_wait
        self._patience = Patience(
            connect_timeout_s=settings.connect_timeout_s, login_patience_s=settings.login_patience
        )
        self._open = partial(
            RabbitBroker,
            name=name,
            heartbeat_s=settings.heartbeat_s,
            speaks_for=speaks_for,
            max_message_bytes=settings.max_message_bytes,
            stop=stop,
        )

    def connect(self) -> RabbitBroker:
        """Return a connection; while an error may pass, wait and try again.

        Raises the error of the last attempt, when it will not pass, when time is up, or when `stop` is set.
        """
        self._patience.begin(time.monotonic())
        attempts = 0
        while True:
            try:
                return self._attempt()
            except (BrokerError, ConfigError) as error:
                if self._stop.is_set() or not self._patience.allows_retry(error, time.monotonic()):
                    raise
                attempts += 1
                self._tell_of_wait(error, attempts)
            if self._stop.wait(wait_before(attempts)):
                raise ConnectionLost("this process was asked to stop while it waited for the broker")

    def connect_at_once(self) -> RabbitBroker:
        """Return a connection without waiting: an error that may pass is raised as ConnectionLost.

        TopologyMissing is raised as it is.
        """
        self._patience.begin(time.monotonic())
        try:
            return self._attempt()
        except (BrokerError, ConfigError) as error:
            if isinstance(error, TopologyMissing) or not self._patience.allows_retry(error, time.monotonic()):
                raise
            raise ConnectionLost(str(error)) from error

    def _attempt(self) -> RabbitBroker:
        # The password file and the certificates are read each time: they may have been replaced.
        broker = self._open(self._settings.broker_address())
        try:
            self._prepare(broker)
        except BaseException:
            broker.close()
            raise
        self._patience.accepted()
        return broker

    def _tell_of_wait(self, error: BrokerError | ConfigError, attempts: int) -> None:
        event = "waiting for the broker"
        if isinstance(error, TopologyMissing):
            event = "waiting for the federation"
        elif isinstance(error, REFUSED):
            event = "the broker refuses this process now, which it accepted before; trying again"
        log.warning(event, attempt=attempts, because=str(error))
        self._on_wait(str(error))


def federation_connector(
    settings: SharedSettings,
    topology: Topology,
    *,
    name: str,
    stop: threading.Event,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Connector:
    """Return the connector of a part that only looks at a federation, and waits until it is there."""

    def prepare(broker: RabbitBroker) -> None:
        require_federation(broker, topology)

    return Connector(settings, name=name, stop=stop, prepare=prepare, on_wait=on_wait)


def worker_connector(
    settings: SharedSettings, topology: Topology, *, worker: str, stop: threading.Event, event_sink: EventSink
) -> Connector:
    """Return the connector of a worker, which waits for its federation and takes its name there.

    `event_sink` is told of each other process that wants the name. Raises NameTaken while another process
    works under the name, and AccessRefused when the broker does not let this user speak for the worker.
    """
    own_label = process_label()

    def tell_of_rival(label: str) -> None:
        log.warning(
            "another process wanted this worker's name and was refused: stop one of the two, or give one of "
            "them another --name",
            other=label,
        )
        event_sink(TurnedAway(label))

    def prepare(broker: RabbitBroker) -> None:
        require_federation(broker, topology)
        # First: its error says what to do when the worker has another name than its user.
        say_hello(broker, topology.updates_in, federation=topology.federation, name=worker)
        broker.take_name(topology, worker, label=own_label, on_rival=tell_of_rival)

    name = f"{topology.federation}/worker/{worker}"
    return Connector(settings, name=name, stop=stop, speaks_for=worker, prepare=prepare)


def evaluator_connector(
    settings: SharedSettings, topology: Topology, *, evaluator: str, stop: threading.Event
) -> Connector:
    """Return the connector of an evaluator, which waits for its federation.

    Raises AccessRefused when the broker does not let this user speak for the evaluator.
    """

    def prepare(broker: RabbitBroker) -> None:
        require_federation(broker, topology)
        say_hello(broker, topology.evaluations_in, federation=topology.federation, name=evaluator)

    name = f"{topology.federation}/evaluator/{evaluator}"
    return Connector(settings, name=name, stop=stop, speaks_for=evaluator, prepare=prepare)


def helper_connector(
    settings: SharedSettings, topology: Topology, *, helper: str, stop: threading.Event, event_sink: EventSink
) -> Connector:
    """Return the connector of a helper, which waits for its federation and takes its name there.

    Raises NameTaken while another process works under the name, and AccessRefused when the broker's user has
    another name than the helper.
    """
    own_label = process_label()

    def tell_of_rival(label: str) -> None:
        log.warning("another process wanted this helper's name and was refused: stop it", other=label)
        event_sink(TurnedAway(label))

    def prepare(broker: RabbitBroker) -> None:
        require_federation(broker, topology)
        broker.take_name(topology, helper, label=own_label, on_rival=tell_of_rival)

    name = f"{topology.federation}/helper/{helper}"
    return Connector(settings, name=name, stop=stop, speaks_for=helper, prepare=prepare)


def say_hello(broker: Broker, exchange: Exchange, *, federation: str, name: str) -> None:
    """Send the first message of a connection (see `fluffle.record.Hello`).

    Raises AccessRefused when the broker does not let this user speak for `name`.
    """
    headers = {"kind": "hello", "id": f"{name}/hello"}
    try:
        broker.publish(exchange.name, "", encode_hello(Hello(federation, name)), headers)
    except QueueFull:
        log.info("the updates queue is full, so that an aggregator needs no hello")


def process_label() -> str:
    """Return a text that tells people which process this is: host, process id, and the time of this call."""
    # RabbitMQ quotes it in an error of 255 bytes. Copied containers differ in the time alone.
    host = re.sub(r"[^A-Za-z0-9._-]", "", socket.gethostname())[:32]
    since = datetime.now(UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")
    return f"process {os.getpid()} on {host}, since {since}Z"


def connect(settings: SharedSettings, *, name: str, stop: threading.Event) -> RabbitBroker:
    """Connect once, as `Connector.connect` does, for a command that ends when its work is done."""
    return Connector(settings, name=name, stop=stop).connect()


@contextmanager
def found_federation(settings: SharedSettings, topology: Topology, *, name: str) -> Iterator[RabbitBroker]:
    """Connect to a federation for a single question; raise TopologyMissing at once when it is not there."""
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
