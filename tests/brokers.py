"""What tests say to a Broker, real or fake."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from fluffle.broker import Broker, Delivery
from fluffle.model_stream import all_stored
from fluffle.record import ModelVersion
from fluffle.record_wire import encode_version, without_weights
from fluffle.topology import Queue, Topology

SOON_S = 10.0
# Long enough for a message that must not come to come all the same.
A_WHILE_S = 0.2

Connect = Callable[[], Broker]


def send(broker: Broker, topology: Topology, *bodies: bytes) -> None:
    """Publish updates."""
    for body in bodies:
        broker.publish(topology.updates_in.name, "", body, {"kind": "update"})


def publish_version(broker: Broker, topology: Topology, *bodies: bytes) -> None:
    """Publish to head and stream."""
    for body in bodies:
        broker.publish(topology.versions_in.name, "", body, {"kind": "version"})


def commit(broker: Broker, topology: Topology, *versions: ModelVersion) -> None:
    """Publish versions as a leader does: to head and streams."""
    for version in versions:
        body = encode_version(version)
        publish_version(broker, topology, body)
        broker.publish_unconfirmed(topology.records_in.name, "", without_weights(body), kind="record")


def receive(broker: Broker, count: int) -> list[Delivery]:
    """Take so many messages, which must come soon."""
    deliveries = [broker.next_delivery(SOON_S) for _ in range(count)]
    return [delivery for delivery in deliveries if delivery is not None]


def bodies_of(deliveries: list[Delivery]) -> list[bytes]:
    """Return the bodies of messages."""
    return [delivery.body for delivery in deliveries]


def read(broker: Broker, topology: Topology, count: int, *, offset: str) -> list[bytes | None]:
    """Read so many bodies of the stream, which must come soon; None for each that does not."""
    with broker.read_stream(topology.models.name, offset=offset) as reader:
        return [reader.next_body(SOON_S) for _ in range(count)]


def look_into(broker: Broker, queue: str) -> list[bytes]:
    """Return the bodies that wait in a queue."""
    with broker.peek(queue) as bodies:
        return list(bodies)


def limited(queue: Queue, *, size_bytes: int) -> Queue:
    """Return the queue with another limit."""
    return replace(queue, arguments={**queue.arguments, "x-max-length-bytes": size_bytes})


def all_versions(broker: Broker, topology: Topology) -> Iterator[ModelVersion]:
    """Yield every version that F.models still holds."""
    return (stored.version for stored in all_stored(broker, topology))
