"""Which queues are a federation's, and how the next leader begins one that was reset."""

from dataclasses import replace

import pytest
from builders import a_config, a_strategy, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from leading import a_server, aggregate, newest, rejected, send

from fluffle.errors import TopologyMissing
from fluffle.management import QueueRow
from fluffle.record import Rank
from fluffle.topology import Topology, topology_of
from fluffle_aggregator.head import StreamHealth
from fluffle_aggregator.leading import Leading
from fluffle_cli.federations import Footprint, footprints
from fluffle_cli.restoring import TERMS_AHEAD, begin_anew, highest_term

CHARGE = a_config(a_strategy(buffer_size=1))
TOPOLOGY = CHARGE.topology


def rows(*names: str) -> list[QueueRow]:
    return [QueueRow(name, 0, None, is_exclusive=False) for name in names]


def whole(topology: Topology, *more: str) -> dict[str, Footprint]:
    queues = [each.name for each in topology.queues]
    return footprints(rows(*queues, *more), [each.name for each in topology.exchanges])


def test_a_federation_has_its_queues_and_exchanges_and_those_that_its_parts_created() -> None:
    topology = topology_of("ward-7")
    made = (
        "ward-7.worker.site-1",
        "ward-7.worker.site-1/bell",
        "ward-7.events.status-1",
        "ward-7.head.looked-into",
    )

    found = whole(topology, *made, "ward-7.mine", "ward-70.updates", "orders", "Orders.updates")

    ward = found["ward-7"]
    assert found.keys() == {"ward-7", "ward-70"}
    assert {each.name for each in ward.queues} == {*made, *(each.name for each in topology.queues)}
    assert ward.exchanges == [each.name for each in topology.exchanges]
    assert ward.others == ["queue ward-7.mine"]
    assert ward.workers == ["site-1"]
    assert (ward.missing, ward.is_federation) == ([], True)


def test_a_foreign_queue_with_a_similar_name_is_no_federation() -> None:
    found = footprints(rows("orders.updates", "orders.mine"), ["orders.events", "amq.fanout", ""])

    assert found.keys() == {"orders"}
    assert not found["orders"].is_federation
    assert "queue orders.head" in found["orders"].missing


def test_a_federation_without_one_queue_is_still_one_and_says_what_is_missing() -> None:
    topology = topology_of("digits")
    queues = rows(*(queue.name for queue in topology.queues if queue != topology.head))

    found = footprints(queues, [each.name for each in topology.exchanges])["digits"]

    assert found.is_federation
    assert found.missing == ["queue digits.head"]


def reset(server: FakeServer) -> int:
    """Do what `fluffle federation reset` does; return the highest term of before."""
    with FakeBroker(server) as broker:
        above = highest_term(broker, TOPOLOGY)
        delete_all_but_the_stream(server)
        begin_anew(broker, TOPOLOGY, above_term=above)
    return above


def delete_all_but_the_stream(server: FakeServer) -> None:
    for queue in (TOPOLOGY.updates, TOPOLOGY.rejected, TOPOLOGY.head):
        del server.queues[queue.name]


def test_after_a_reset_version_0_is_above_all_that_anybody_has_seen() -> None:
    server = a_server(CHARGE, an_update("w", 1), an_update("w", 2, base_version=1))
    aggregate(server, CHARGE)
    aggregate(server, CHARGE)
    before = newest(server, CHARGE)

    reset(server)
    # An update that waited somewhere, from a version of before.
    send(server, CHARGE, an_update("w", 3, base_version=0))
    aggregate(server, CHARGE)

    after = newest(server, CHARGE)
    assert before.version == 2
    assert after.terms[0] == Rank(before.term + TERMS_AHEAD + 1, 0)
    assert (after.updates, after.applied.runs) == (0, {})
    assert [each["reason"] for each in rejected(server, CHARGE)] == ["unknown-base"]


def test_after_a_reset_the_next_leaders_go_on_from_the_new_version_0() -> None:
    server = a_server(CHARGE, an_update("w", 1))
    aggregate(server, CHARGE)
    reset(server)
    aggregate(server, CHARGE)
    first = newest(server, CHARGE)

    send(server, CHARGE, replace(an_update("w", 1), base_term=first.term))
    aggregate(server, CHARGE)

    after = newest(server, CHARGE)
    assert (after.version, after.updates) == (1, 1)
    assert after.terms[0] == first.rank
    assert after.term > first.term


def test_a_second_reset_has_a_higher_term_even_without_an_aggregator_in_between() -> None:
    server = a_server(CHARGE)

    once, twice = reset(server), reset(server)
    aggregate(server, CHARGE)

    assert twice == once + TERMS_AHEAD
    assert newest(server, CHARGE).terms[0].term > twice


def test_a_reset_that_is_interrupted_lets_no_aggregator_begin_and_is_finished_by_the_next_one() -> None:
    server = a_server(CHARGE, an_update("w", 1))
    aggregate(server, CHARGE)
    before = newest(server, CHARGE)

    delete_all_but_the_stream(server)
    with FakeBroker(server) as broker:
        broker.declare(TOPOLOGY)
    with pytest.raises(TopologyMissing, match="a leader starts from is empty"):
        aggregate(server, CHARGE)
    reset(server)
    aggregate(server, CHARGE)

    assert newest(server, CHARGE).terms[0].term > before.term + TERMS_AHEAD


def test_an_aggregator_that_saw_versions_begins_anew_after_a_reset_and_not_after_a_loss() -> None:
    server, stream_health = a_server(CHARGE), StreamHealth()
    with FakeBroker(server) as broker:
        Leading(CHARGE, broker, stream_health)
    reset(server)
    with FakeBroker(server) as broker:
        Leading(CHARGE, broker, stream_health)
    assert newest(server, CHARGE).term > TERMS_AHEAD

    with FakeBroker(server) as broker:
        for queue in TOPOLOGY.queues:
            del server.queues[queue.name]
        broker.declare(TOPOLOGY)
        with pytest.raises(TopologyMissing, match="had versions"):
            Leading(CHARGE, broker, stream_health)


def test_a_federation_without_versions_is_reset_to_term_1() -> None:
    server = FakeServer()
    with FakeBroker(server) as broker:
        broker.declare(TOPOLOGY)

    above = reset(server)
    aggregate(server, CHARGE)

    assert above == 0
    assert newest(server, CHARGE).rank == a_version(0).rank
