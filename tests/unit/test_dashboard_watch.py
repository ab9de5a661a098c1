"""What the live page believes of what it hears."""

from __future__ import annotations

from fluffle.broker import Delivery
from fluffle.events import Happened, Joined, Report, Role
from fluffle.topology import topology_of
from fluffle.wire import encode_report
from fluffle_cli.dashboard.watch import believable

TOPOLOGY = topology_of("digits")


def heard(role: Role, name: str, *, exchange: str, user: str | None, federation: str = "digits") -> Delivery:
    body = encode_report(Report(federation, role, name, (Happened(0.0, Joined()),)))
    return Delivery(1, body, 0, user, exchange)


def test_a_member_is_believed_of_itself_alone_and_an_aggregator_by_its_exchange() -> None:
    members, leaders = TOPOLOGY.member_events_in.name, TOPOLOGY.events.name

    believed = {
        "itself": heard("worker", "w1", exchange=members, user="w1"),
        "evaluator": heard("evaluator", "e", exchange=members, user="e"),
        "leader": heard("aggregator", "a1", exchange=leaders, user="aggregator"),
    }
    passed_over = {
        "another": heard("worker", "w2", exchange=members, user="w1"),
        "nobody": heard("worker", "w1", exchange=members, user=None),
        "a worker as aggregator": heard("aggregator", "w1", exchange=members, user="w1"),
        "another federation": heard("worker", "w1", exchange=members, user="w1", federation="other"),
        "rubbish": Delivery(1, b"rubbish", 0, "w1", members),
    }

    assert all(believable(delivery, TOPOLOGY) for delivery in believed.values())
    assert not any(believable(delivery, TOPOLOGY) for delivery in passed_over.values())
