"""Reaching the broker: waits for one that is not there yet, says so, and gives up in the end."""

from __future__ import annotations

import threading

import tenacity

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
) -> RabbitBroker:
    """Connect, and wait too until the federation's queues are there, as `connect` does.

    A worker or evaluator says in whose name it speaks, and `through` which exchange it publishes: it says
    hello there. Raises AccessRefused at once when the broker does not let this user do so.
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
            broker.check(topology)
            if speaks_for and through:
                say_hello(broker, through, federation=topology.federation, name=speaks_for)
        except TopologyMissing as error:
            broker.close()
            raise TopologyMissing(
                f"the federation {topology.federation!r} is not on {settings.shown_broker_url}: start its "
                f"aggregator, or run `fluffle broker setup` ({error})"
            ) from error
        except BaseException:
            broker.close()
            raise
        return broker

    return _patiently(settings, stop)(attempt)


def _patiently(settings: SharedSettings, stop: threading.Event) -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((ConnectionLost, TopologyMissing)),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=tenacity.stop_after_delay(settings.connect_timeout_s) | tenacity.stop_when_event_set(stop),
        sleep=tenacity.sleep_using_event(stop),
        before_sleep=_say_what_is_awaited,
        reraise=True,
    )


def _say_what_is_awaited(attempt: tenacity.RetryCallState) -> None:
    error = attempt.outcome.exception() if attempt.outcome else None
    log.warning("waiting for the broker", attempt=attempt.attempt_number, because=str(error))
