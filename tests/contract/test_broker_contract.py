"""What every Broker promises of queues: for FakeBroker and for RabbitBroker on a real node."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
from brokers import A_WHILE_S, SOON_S, Connect, bodies_of, limited, look_into, read, receive, send
from federation import wait_until

from fluffle.broker import Broker, QueueState
from fluffle.errors import ConnectionLost, QueueFull, RequestRefused, TopologyMissing, Unroutable
from fluffle.pieces import Pieces
from fluffle.topology import Topology


def test_declaring_twice_changes_nothing(broker: Broker, topology: Topology) -> None:
    send(broker, topology, b"one")

    broker.declare(topology)
    send(broker, topology, b"two")

    broker.consume(topology.updates.name, prefetch=10)
    assert bodies_of(receive(broker, 2)) == [b"one", b"two"]
    assert broker.next_delivery(A_WHILE_S) is None


def test_a_queue_that_is_there_with_other_arguments_is_a_mismatch(broker: Broker, topology: Topology) -> None:
    others = [
        replace(topology, updates=limited(topology.updates, size_bytes=1007)),
        replace(topology, rejected=limited(topology.rejected, size_bytes=1007)),
        replace(topology, head=limited(topology.head, size_bytes=1007)),
        replace(topology, models=limited(topology.models, size_bytes=1_000_000_007)),
    ]

    for other in others:
        with pytest.raises(RequestRefused, match=topology.federation):
            broker.declare(other)

    broker.check(topology)  # the connection goes on


def test_checking_a_federation_that_nobody_declared_says_what_is_missing(
    connect: Connect, topology: Topology
) -> None:
    broker = connect()

    with pytest.raises(TopologyMissing, match=topology.updates_in.name):
        broker.check(topology)


def test_checking_looks_for_the_stream_too(broker: Broker, topology: Topology) -> None:
    elsewhere = replace(topology, models=replace(topology.models, name=f"{topology.models.name}.gone"))

    with pytest.raises(TopologyMissing, match=elsewhere.models.name):
        broker.check(elsewhere)


def test_an_update_arrives_with_its_headers_and_its_sender(broker: Broker, topology: Topology) -> None:
    broker.consume(topology.updates.name, prefetch=1)

    broker.publish(topology.updates_in.name, "", b"body", {"kind": "update", "id": "w/r/1"})

    [delivery] = receive(broker, 1)
    assert delivery.body == b"body"
    assert delivery.headers == {"kind": "update", "id": "w/r/1"}
    assert delivery.redeliveries == 0
    assert delivery.user


def test_a_large_message_arrives_as_it_was(broker: Broker, topology: Topology) -> None:
    body = bytes(range(256)) * 20_000
    broker.consume(topology.updates.name, prefetch=1)

    send(broker, topology, body)

    assert bodies_of(receive(broker, 1)) == [body]


@pytest.mark.parametrize("size", [1, 131_064, 5_000_000])
def test_a_message_in_pieces_arrives_in_one(broker: Broker, topology: Topology, size: int) -> None:
    # About a frame, and many of them: the cuts between frames and those between pieces fall apart.
    vector = memoryview(bytes(range(256)) * (size // 256 + 1))[:size]
    broker.consume(topology.updates.name, prefetch=2)

    broker.publish(topology.updates_in.name, "", Pieces(b"header", (vector, memoryview(b"end"))), {})
    broker.publish(topology.updates_in.name, "", b"the next", {})

    assert bodies_of(receive(broker, 2)) == [b"header" + bytes(vector) + b"end", b"the next"]


def test_a_message_that_no_queue_takes_is_unroutable_and_the_connection_goes_on(
    broker: Broker, topology: Topology
) -> None:
    with pytest.raises(Unroutable):
        broker.publish("", f"{topology.federation}.nowhere", b"body", {})

    broker.consume(topology.updates.name, prefetch=1)
    send(broker, topology, b"next")
    assert bodies_of(receive(broker, 1)) == [b"next"]


def test_an_exchange_that_is_not_there_costs_the_connection(broker: Broker, topology: Topology) -> None:
    with pytest.raises(TopologyMissing, match="nowhere"):
        broker.publish(f"{topology.federation}.nowhere", "", b"body", {})

    with pytest.raises(ConnectionLost):
        send(broker, topology, b"next")


def test_a_full_queue_refuses_and_takes_messages_again_when_there_is_room(
    connect: Connect, topology: Topology
) -> None:
    small = replace(topology, updates=limited(topology.updates, size_bytes=1000))
    broker = connect()
    broker.declare(small)

    def fill() -> None:
        for _ in range(100):
            send(broker, small, bytes(100))

    with pytest.raises(QueueFull, match=small.updates_in.name):
        fill()

    broker.consume(small.updates.name, prefetch=100)
    waiting = broker.state(small.updates.name).messages
    while delivery := broker.next_delivery(SOON_S if waiting else A_WHILE_S):
        broker.ack([delivery.tag])
        waiting = broker.state(small.updates.name).messages

    def has_room() -> bool:
        try:
            send(broker, small, b"room")
        except QueueFull:
            return False
        return True

    wait_until(has_room, "room in the queue", deadline_s=SOON_S)


def test_a_standby_gets_nothing_until_the_active_one_leaves_and_then_all_that_was_not_acked_in_order(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    active, standby = broker, connect()
    active.consume(topology.updates.name, prefetch=10)
    standby.consume(topology.updates.name, prefetch=10)
    send(active, topology, b"1", b"2", b"3", b"4")
    first, *_ = receive(active, 4)
    active.ack([first.tag])

    assert standby.next_delivery(A_WHILE_S) is None

    active.close()
    taken_over = receive(standby, 3)
    assert bodies_of(taken_over) == [b"2", b"3", b"4"]
    assert [delivery.redeliveries for delivery in taken_over] == [1, 1, 1]


def test_what_is_given_back_comes_again_in_order_as_a_redelivery(broker: Broker, topology: Topology) -> None:
    broker.consume(topology.updates.name, prefetch=10)
    send(broker, topology, b"1", b"2", b"3")
    first, second, third = receive(broker, 3)

    broker.give_back([third.tag, first.tag])

    again = receive(broker, 2)
    assert bodies_of(again) == [b"1", b"3"]
    # How many, RabbitMQ counts until version 4.2 only.
    assert all(delivery.redeliveries >= 1 for delivery in again)
    broker.ack([second.tag, *(delivery.tag for delivery in again)])


def test_what_was_delivered_but_never_taken_goes_to_the_next_consumer_in_order(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    send(broker, topology, *(b"%d" % number for number in range(6)))
    broker.consume(topology.updates.name, prefetch=4)
    receive(broker, 1)

    broker.close()

    standby = connect()
    standby.consume(topology.updates.name, prefetch=10)
    assert bodies_of(receive(standby, 6)) == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_no_more_than_the_prefetch_is_unacked_at_a_time(broker: Broker, topology: Topology) -> None:
    broker.consume(topology.updates.name, prefetch=2)
    send(broker, topology, b"1", b"2", b"3")
    first, _ = receive(broker, 2)
    assert broker.next_delivery(A_WHILE_S) is None

    broker.ack([first.tag])

    assert bodies_of(receive(broker, 1)) == [b"3"]


def test_what_is_acked_never_comes_back(connect: Connect, broker: Broker, topology: Topology) -> None:
    broker.consume(topology.updates.name, prefetch=10)
    send(broker, topology, b"1", b"2", b"3")
    broker.ack(delivery.tag for delivery in receive(broker, 3))

    broker.close()

    other = connect()
    other.consume(topology.updates.name, prefetch=10)
    assert other.next_delivery(A_WHILE_S) is None


def test_acking_what_was_never_delivered_costs_the_connection(broker: Broker, topology: Topology) -> None:
    broker.consume(topology.updates.name, prefetch=10)

    def ack_and_go_on() -> None:
        broker.ack([77])
        for _ in range(100):
            send(broker, topology, b"body")

    with pytest.raises(ConnectionLost):
        ack_and_go_on()


def test_cancelling_hands_over_to_the_standby_and_keeps_what_is_unacked(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    standby = connect()
    broker.consume(topology.updates.name, prefetch=1)
    standby.consume(topology.updates.name, prefetch=10)
    send(broker, topology, b"held", b"free")
    [held] = receive(broker, 1)

    broker.cancel()

    assert bodies_of(receive(standby, 1)) == [b"free"]
    broker.ack([held.tag])
    broker.close()
    assert standby.next_delivery(A_WHILE_S) is None


def test_peeking_leaves_the_messages_in_their_order(broker: Broker, topology: Topology) -> None:
    for body in (b"1", b"2", b"3"):
        broker.publish(topology.rejected_in.name, "", body, {})

    looks = [look_into(broker, topology.rejected.name) for _ in range(3)]

    assert looks == [[b"1", b"2", b"3"]] * 3
    assert look_into(broker, topology.head.name) == []


def test_who_looks_into_a_queue_while_another_does_sees_all_of_it_when_the_other_is_done(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    bodies = [b"1", b"2", b"3"]
    for body in bodies:
        broker.publish(topology.rejected_in.name, "", body, {})
    second = connect()

    with ThreadPoolExecutor() as pool:
        with broker.peek(topology.rejected.name) as first:
            assert next(first) == b"1"
            look = pool.submit(look_into, second, topology.rejected.name)
            assert not wait([look], A_WHILE_S).done or look.result() == bodies
            assert list(first) == [b"2", b"3"]

        assert look.result(SOON_S) == bodies


def test_nobody_may_look_into_a_queue_with_a_single_active_consumer(
    broker: Broker, topology: Topology
) -> None:
    with pytest.raises(RequestRefused, match=topology.updates.name):
        look_into(broker, topology.updates.name)


def test_state_counts_what_waits_and_the_active_consumer_only(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    def has(state: QueueState) -> Callable[[], bool]:
        return lambda: broker.state(topology.updates.name) == state

    wait_until(has(QueueState(messages=0, consumers=0)), "an empty queue", deadline_s=SOON_S)
    send(broker, topology, b"1", b"2", b"3")
    wait_until(has(QueueState(messages=3, consumers=0)), "three messages", deadline_s=SOON_S)
    active, standby = connect(), connect()
    active.consume(topology.updates.name, prefetch=1)
    standby.consume(topology.updates.name, prefetch=1)
    wait_until(has(QueueState(messages=2, consumers=1)), "one in progress", deadline_s=SOON_S)
    active.close()
    wait_until(has(QueueState(messages=2, consumers=1)), "the standby at work", deadline_s=SOON_S)
    standby.close()
    wait_until(has(QueueState(messages=3, consumers=0)), "no consumer", deadline_s=SOON_S)


def test_a_leader_that_leaves_sees_whether_a_standby_is_there(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    standby = connect()
    broker.consume(topology.updates.name, prefetch=1)
    standby.consume(topology.updates.name, prefetch=1)

    broker.cancel()
    assert broker.state(topology.updates.name).consumers == 1

    standby.cancel()
    assert broker.state(topology.updates.name).consumers == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda broker, topology: broker.declare(topology),
        lambda broker, topology: broker.check(topology),
        lambda broker, topology: broker.recreate_stream(topology.models),
        lambda broker, topology: send(broker, topology, b"body"),
        lambda broker, topology: broker.consume(topology.updates.name, prefetch=1),
        lambda broker, _: broker.cancel(),
        lambda broker, _: broker.next_delivery(SOON_S),
        lambda broker, _: broker.ack([1]),
        lambda broker, topology: look_into(broker, topology.head.name),
        lambda broker, topology: broker.state(topology.head.name),
        lambda broker, topology: read(broker, topology, 1, offset="last"),
    ],
    ids=[
        "declare",
        "check",
        "rebuild",
        "publish",
        "consume",
        "cancel",
        "next",
        "ack",
        "peek",
        "state",
        "read",
    ],
)
def test_a_closed_connection_is_lost_for_every_use(
    broker: Broker, topology: Topology, use: Callable[[Broker, Topology], object]
) -> None:
    broker.close()

    with pytest.raises(ConnectionLost):
        use(broker, topology)

    broker.close()  # once more does no harm
