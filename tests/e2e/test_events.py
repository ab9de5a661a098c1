"""What a real federation tells to whoever listens, and that nobody needs a listener."""

from pathlib import Path

import pika
from federation import Federation, wait_until

from fluffle.events import (
    Applied,
    Committed,
    Event,
    Joined,
    Left,
    Published,
    Rejected,
    Report,
    Started,
    TookOver,
    Trained,
)
from fluffle.wire import decode_report
from fluffle_cli.node import BrokerNode

FLAGS = ["--buffer-size", "1", "--local-steps", "5", "--max-updates", "4"]


def test_a_listener_hears_each_step_of_the_training(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        topology = running.topology
        reports: list[Report] = []
        with running.connect() as broker:
            broker.declare(topology)
            with broker.listen(topology.events.name, name="test") as listener:
                aggregator = running.aggregator("first", *FLAGS)
                aggregator.wait_for("leading")
                broker.publish_as("stranger", topology.updates_in.name, "", b"rubbish", {})
                worker = running.worker(0)

                def all_have_left() -> bool:
                    while delivery := listener.next_delivery(0.1):
                        reports.append(decode_report(delivery.body))
                        assert delivery.user
                    return sum(isinstance(event, Left) for event in told(reports)) == 2

                wait_until(all_have_left, "both to have left")
        assert aggregator.wait_for_exit() == worker.wait_for_exit() == 0
        newest = running.newest()

    by_aggregator, by_worker = told(reports, "aggregator"), told(reports, "worker")
    assert by_aggregator[:2] == [Joined(), TookOver(1, 0)]
    [rejected] = [each for each in by_aggregator if isinstance(each, Rejected)]
    assert (rejected.worker, rejected.reason) == ("stranger", "unreadable")
    assert sum(isinstance(each, Applied) for each in by_aggregator) == newest.updates == 4
    stages = [type(each) for each in by_worker if isinstance(each, Started | Trained | Published)]
    assert stages[:12] == 4 * [Started, Trained, Published]
    last = [each for each in by_aggregator if isinstance(each, Committed)][-1]
    assert (last.version, last.term) == (newest.version, newest.term)
    assert by_worker[-1] == Left("the federation has finished")


def test_a_federation_whose_events_exchange_is_deleted_trains_on(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        aggregator = running.aggregator("first", *FLAGS)
        aggregator.wait_for("leading")
        with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
            for exchange in (running.topology.events, running.topology.member_events_in):
                connection.channel().exchange_delete(exchange.name)
        # It does not start without the exchange, which an aggregator declares.
        with running.connect() as broker:
            broker.declare(running.topology)
        worker = running.worker(0)

        assert aggregator.wait_for_exit() == worker.wait_for_exit() == 0
        assert running.newest().updates == 4


def told(reports: list[Report], role: str = "") -> list[Event]:
    """Return the events of all reports, or of a role's."""
    return [each.event for report in reports if role in {"", report.role} for each in report.events]
