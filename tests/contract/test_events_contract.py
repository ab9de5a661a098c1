"""What every Broker promises of what is told and listened to: FakeBroker, and RabbitBroker on a real node."""

import time

import pytest
from brokers import A_WHILE_S, SOON_S, Connect

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, TopologyMissing, Unroutable
from fluffle.topology import LISTENER_MAX_BYTES, Topology


def test_what_is_told_is_heard_in_its_order_by_everybody_who_listens(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    event_sink, other = connect(), connect()
    events = topology.events.name
    with broker.listen(events, name="one") as one, other.listen(events, name="other") as two:
        for body in (b"1", b"2", b"3"):
            event_sink.publish_unconfirmed(events, "worker.w1", body)

        heard = [[each.next_delivery(SOON_S) for _ in range(3)] for each in (one, two)]
        silence = one.next_delivery(A_WHILE_S)

    assert [[each and each.body for each in all_of_it] for all_of_it in heard] == [[b"1", b"2", b"3"]] * 2
    assert silence is None


def test_a_listener_sees_who_told_it_and_through_which_exchange(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    with broker.listen(topology.events.name, name="one") as listener:
        connect().publish_unconfirmed(topology.member_events_in.name, "worker.w1", b"started")

        heard = listener.next_delivery(SOON_S)

    assert heard is not None
    assert heard.exchange == topology.member_events_in.name
    assert heard.user


def test_telling_hurts_nobody_where_nobody_listens_or_nothing_is_there(
    broker: Broker, topology: Topology
) -> None:
    broker.publish_unconfirmed(topology.events.name, "worker.w1", b"unheard")
    broker.publish_unconfirmed("nowhere", "worker.w1", b"unheard")
    broker.publish_unconfirmed(topology.events.name, "worker.w1", b"unheard")

    broker.publish(topology.updates_in.name, "", b"update", {})
    assert broker.state(topology.models.name).messages == 0


def test_what_is_told_before_its_exchange_is_there_does_not_silence_what_is_told_later(
    broker: Broker, topology: Topology
) -> None:
    broker.publish_unconfirmed("nowhere", "worker.w1", b"unheard")
    with broker.listen(topology.events.name, name="one") as listener:
        heard = None
        deadline = time.monotonic() + SOON_S
        while heard is None and time.monotonic() < deadline:
            broker.publish_unconfirmed(topology.events.name, "worker.w1", b"later")
            heard = listener.next_delivery(A_WHILE_S)

    assert heard is not None


def test_telling_over_a_closed_connection_hurts_nobody_and_listening_is_lost(
    broker: Broker, topology: Topology
) -> None:
    with broker.listen(topology.events.name, name="one") as listener:
        broker.close()
        broker.publish_unconfirmed(topology.events.name, "worker.w1", b"unheard")

        with pytest.raises(ConnectionLost):
            listener.next_delivery(SOON_S)


def test_nobody_listens_to_an_exchange_that_is_not_there(broker: Broker) -> None:
    with pytest.raises(TopologyMissing, match="nowhere"), broker.listen("nowhere", name="one"):
        pass


def test_a_confirmed_message_reaches_all_who_listen_to_a_topic_exchange_and_says_when_nobody_does(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    large = bytes(LISTENER_MAX_BYTES + 1)
    exchange, headers = topology.openings_in.name, {"kind": "opening"}
    with connect().listen(exchange, name="leader", max_bytes=4 * LISTENER_MAX_BYTES) as listener:
        for body in (b"first", large, large):
            broker.publish(exchange, "", body, headers)
        heard = [listener.next_delivery(SOON_S) for _ in range(3)]

    assert [each and len(each.body) for each in heard] == [5, len(large), len(large)]
    with pytest.raises(Unroutable):
        broker.publish(exchange, "", b"to nobody", headers)
