"""What `fluffle rejected` leans on: for FakeBroker and for RabbitBroker on a real node."""

from __future__ import annotations

from dataclasses import replace

import pytest
from brokers import A_WHILE_S, SOON_S, Connect, bodies_of, receive, send
from federation import wait_until

from fluffle.broker import Broker
from fluffle.errors import TopologyMissing
from fluffle.topology import Topology
from fluffle_cli.rejected import look_through, waiting

# basic.get gives more than 32 messages back in any order; a consumer's go back as they came.
MANY = 300


def until_waiting(broker: Broker, topology: Topology, count: int) -> None:
    wait_until(lambda: waiting(broker, topology) >= count, f"{count} messages to be there", deadline_s=SOON_S)
    assert waiting(broker, topology) == count


def refuse(broker: Broker, topology: Topology, count: int) -> list[bytes]:
    bodies = [b"%d" % number for number in range(count)]
    for body in bodies:
        broker.publish(topology.rejected_in.name, "", body, {})
    until_waiting(broker, topology, count)
    return bodies


def test_looking_through_many_messages_leaves_them_all_there_in_their_order(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    bodies = refuse(broker, topology, MANY)

    for _ in range(3):
        looking = connect()
        assert bodies_of(list(look_through(looking, topology, MANY))) == bodies
        looking.close()
        until_waiting(broker, topology, MANY)


def test_one_who_leaves_in_the_middle_of_looking_loses_nothing(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    bodies = refuse(broker, topology, MANY)
    looking = connect()
    some = look_through(looking, topology, MANY)
    for _ in range(MANY // 2):
        next(some)

    looking.close()

    until_waiting(broker, topology, MANY)
    assert sorted(bodies_of(list(look_through(broker, topology, MANY)))) == sorted(bodies)


def test_what_is_settled_is_gone_even_if_the_connection_ends_at_once_and_the_rest_is_back_in_its_order(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    left = refuse(broker, topology, MANY)

    for share in (3, 2, 5):
        looking = connect()
        found = list(look_through(looking, topology, len(left)))
        looking.settle(topology.rejected.name, [delivery.tag for delivery in found[::share]])
        looking.close()

        left = [body for number, body in enumerate(left) if number % share]
        until_waiting(broker, topology, len(left))
    assert bodies_of(list(look_through(broker, topology, len(left)))) == left


def test_what_is_refused_meanwhile_is_not_held(connect: Connect, broker: Broker, topology: Topology) -> None:
    refuse(broker, topology, 2)
    looking = connect()
    assert len(list(look_through(looking, topology, 2))) == 2

    broker.publish(topology.rejected_in.name, "", b"later", {})

    until_waiting(broker, topology, 1)


def test_what_comes_back_more_often_than_the_limit_allows_is_refused_by_the_broker_and_its_neighbour_is_not(
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
