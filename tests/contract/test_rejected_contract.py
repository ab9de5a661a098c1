"""What `fluffle rejected` leans on: for FakeBroker and for RabbitBroker on a real node."""

from dataclasses import replace

import pytest
from brokers import A_WHILE_S, SOON_S, Connect, bodies_of, receive, send
from federation import wait_until

from fluffle.broker import Broker
from fluffle.errors import TopologyMissing
from fluffle.topology import Topology
from fluffle_cli.rejected import read_rejected

# basic.get gives more than 32 messages back in any order; a consumer's go back as they came.
MANY = 300


def until_waiting(broker: Broker, topology: Topology, count: int) -> None:
    def waiting() -> int:
        return broker.state(topology.rejected.name).messages

    wait_until(lambda: waiting() >= count, f"{count} messages to be there", deadline_s=SOON_S)
    assert waiting() == count


def bodies_in(broker: Broker, topology: Topology) -> list[bytes]:
    return [body for _, body in read_rejected(broker, topology)]


def refuse(broker: Broker, topology: Topology, count: int) -> list[bytes]:
    bodies = [b"%d" % number for number in range(count)]
    for body in bodies:
        broker.publish(topology.rejected_in.name, "", body, {})
    until_waiting(broker, topology, count)
    return bodies


def test_reading_many_messages_leaves_all_of_them_in_the_queue_in_order(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    bodies = refuse(broker, topology, MANY)

    for _ in range(3):
        looking = connect()
        assert bodies_in(looking, topology) == bodies
        looking.close()
        until_waiting(broker, topology, MANY)


def test_a_reader_that_leaves_early_loses_no_message(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    bodies = refuse(broker, topology, MANY)
    looking = connect()
    some = read_rejected(looking, topology)
    for _ in range(MANY // 2):
        next(some)

    looking.close()

    until_waiting(broker, topology, MANY)
    assert sorted(bodies_in(broker, topology)) == sorted(bodies)


def test_settled_messages_are_gone_after_the_connection_ends_and_the_rest_is_back_in_order(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    left = refuse(broker, topology, MANY)

    for share in (3, 2, 5):
        looking = connect()
        found = [message for message, _ in read_rejected(looking, topology)]
        looking.settle(topology.rejected.name, [message.tag for message in found[::share]])
        looking.close()

        left = [body for number, body in enumerate(left) if number % share]
        until_waiting(broker, topology, len(left))
    assert bodies_in(broker, topology) == left


def test_messages_refused_while_somebody_reads_stay_in_the_queue(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    refuse(broker, topology, 2)
    looking = connect()
    assert len(bodies_in(looking, topology)) == 2

    broker.publish(topology.rejected_in.name, "", b"later", {})

    until_waiting(broker, topology, 1)


def test_a_message_above_the_delivery_limit_is_refused_and_its_neighbour_is_not(
    connect: Connect, topology: Topology
) -> None:
    limit = 2
    updates = replace(topology.updates, arguments={**topology.updates.arguments, "x-delivery-limit": limit})
    limited = replace(topology, updates=updates)
    broker = connect()
    broker.declare(limited)
    send(broker, limited, b"deadly", b"neighbour")

    for times in range(limit + 1):
        dying = connect()
        dying.consume(updates.name, prefetch=1)
        assert [(each.body, each.redeliveries) for each in receive(dying, 1)] == [(b"deadly", times)]
        dying.close()

    broker.consume(updates.name, prefetch=10)
    assert bodies_of(receive(broker, 1)) == [b"neighbour"]
    until_waiting(broker, limited, 1)
    reading = connect()
    reading.consume(limited.rejected.name, prefetch=1)
    [dead] = receive(reading, 1)
    assert (dead.body, dead.exchange) == (b"deadly", limited.rejected_in.name)
    assert dead.headers["x-first-death-reason"] == "delivery_limit"
    assert dead.headers["x-first-death-queue"] == updates.name
    assert dead.headers["x-first-death-exchange"] == limited.updates_in.name


def test_a_message_can_be_another_users_or_nobodys(broker: Broker, topology: Topology) -> None:
    broker.consume(topology.updates.name, prefetch=10)
    send(broker, topology, b"own")
    for user in ("somebody", ""):
        broker.publish_as(user, topology.updates_in.name, "", b"body", {"id": "w/r/1"})

    own, another, nobodys = receive(broker, 3)

    assert another.user == "somebody" != own.user
    assert nobodys.user is None
    assert another.headers == {"id": "w/r/1"}
    assert broker.next_delivery(A_WHILE_S) is None


def test_another_users_message_needs_an_exchange_too(broker: Broker, topology: Topology) -> None:
    with pytest.raises(TopologyMissing, match="nowhere"):
        broker.publish_as("somebody", f"{topology.federation}.nowhere", "", b"body", {})
