"""The aggregator's look at what somebody may have deleted."""

import pytest
from fake_broker import FakeBroker, FakeServer
from leading import Clock

from fluffle.errors import TopologyMissing
from fluffle.topology import topology_of
from fluffle_aggregator.topology_watch import LOOK_AGAIN_AFTER_S, LOOK_EVERY_S, TopologyWatch

TOPOLOGY = topology_of("digits")


def test_what_is_gone_twice_in_a_row_was_deleted() -> None:
    server, clock = FakeServer(), Clock()
    with FakeBroker(server) as broker:
        broker.declare(TOPOLOGY)
        watch = TopologyWatch(broker, TOPOLOGY, clock=clock)
        del server.exchanges[TOPOLOGY.versions_in.name]

        watch.look_when_due()  # not yet
        clock.seconds += LOOK_EVERY_S
        watch.look_when_due()  # once
        clock.seconds += LOOK_AGAIN_AFTER_S

        with pytest.raises(TopologyMissing, match=r"somebody deleted .*digits\.versions.*makes it anew"):
            watch.look_when_due()


def test_a_stream_that_a_leader_makes_anew_was_not() -> None:
    server, clock = FakeServer(), Clock()
    with FakeBroker(server) as broker:
        broker.declare(TOPOLOGY)
        watch = TopologyWatch(broker, TOPOLOGY, clock=clock)

        for _ in range(3):
            del server.queues[TOPOLOGY.models.name]
            clock.seconds += LOOK_EVERY_S
            watch.look_when_due()
            broker.declare(TOPOLOGY)
            clock.seconds += LOOK_AGAIN_AFTER_S
            watch.look_when_due()
