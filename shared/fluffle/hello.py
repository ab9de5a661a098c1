"""The first message of each connection; `fluffle.record.Hello` says what it is for."""

from fluffle.broker import Broker
from fluffle.errors import QueueFull
from fluffle.logs import get_logger
from fluffle.record import Hello
from fluffle.topology import Exchange
from fluffle.wire import encode_hello

log = get_logger(__name__)


def say_hello(broker: Broker, exchange: Exchange, *, federation: str, name: str) -> None:
    """Send a hello. Raises AccessRefused when the broker does not let this user speak for `name`."""
    headers = {"kind": "hello", "id": f"{name}/hello"}
    try:
        broker.publish(exchange.name, "", encode_hello(Hello(federation, name)), headers)
    except QueueFull:
        log.info("the updates queue is full, so that an aggregator needs no hello")
