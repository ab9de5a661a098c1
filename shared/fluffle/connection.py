"""Reaching the broker, and a federation on it: waits for what is not there yet, and says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tenacity

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, TopologyMissing
from fluffle.hello import say_hello
from fluffle.logs import get_logger
from fluffle.rabbit import RabbitBroker
from fluffle.settings import SharedSettings
from fluffle.topology import Exchange, Topology

log = get_logger(__name__)

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0


def connect(settings: SharedSettings, *, name: str, stop: threading.Event) -> RabbitBroker:
    """Connect, however long the broker takes to come up, within `connect_timeout_s`.

    `name` is what RabbitMQ's UI shows. Raises AccessRefused at once, and ConnectionLost at the end of the
    time or when `stop` is set.
    """
    return _patiently(settings, stop)(
        lambda: RabbitBroker(
            settings.broker_address(),
            name=name,
            heartbeat_s=settings.heartbeat_s,
            max_message_bytes=settings.max_message_bytes,
            stop=stop,
        )
    )


def connect_to_federation(
    settings: SharedSettings,
    topology: Topology,
    *,
    name: str,
    stop: threading.Event,
    speaks_for: str | None = None,
    through: Exchange | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> RabbitBroker:
    """Connect, and wait too until the federation's queues are there, as `connect` does.

    A worker or evaluator says in whose name it speaks, and `through` which exchange it publishes: it says
    hello there. `on_wait` is called before each wait with the reason for it. Raises AccessRefused at once
    when the broker does not let this user do so.
    """

    def attempt() -> RabbitBroker:
        broker = RabbitBroker(
            settings.broker_address(),
            name=name,
            heartbeat_s=settings.heartbeat_s,
            speaks_for=speaks_for,
            max_message_bytes=settings.max_message_bytes,
            stop=stop,
        )
        try:
            require_federation(broker, topology)
            if speaks_for and through:
                say_hello(broker, through, federation=topology.federation, name=speaks_for)
        except BaseException:
            broker.close()
            raise
        return broker

    return _patiently(settings, stop, on_wait)(attempt)


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


def _patiently(
    settings: SharedSettings, stop: threading.Event, on_wait: Callable[[str], None] | None = None
) -> tenacity.Retrying:
    def say_what_is_awaited(attempt: tenacity.RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        is_federation = isinstance(error, TopologyMissing)
        awaited = "waiting for the federation" if is_federation else "waiting for the broker"
        log.warning(awaited, attempt=attempt.attempt_number, because=str(error))
        if on_wait:
            on_wait(str(error))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((ConnectionLost, TopologyMissing)),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=tenacity.stop_after_delay(settings.connect_timeout_s) | tenacity.stop_when_event_set(stop),
        sleep=tenacity.sleep_using_event(stop),
        before_sleep=say_what_is_awaited,
        reraise=True,
    )
