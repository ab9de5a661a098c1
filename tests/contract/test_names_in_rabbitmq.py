"""What RabbitMQ's UI calls the parts of a federation."""

import json
from pathlib import Path

from federation import Federation
from rabbitmqctl import rabbitmqctl

from fluffle_cli.node import BrokerNode


def test_connections_and_consumers_are_called_as_people_call_the_parts(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    def listed(kind: str, *columns: str) -> list[dict[str, str]]:
        rows = json.loads(rabbitmqctl(node, "--formatter", "json", kind, *columns))
        return [row for row in rows if f"{federation}/" in str(row)]

    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        running.aggregator("first").wait_for("leading")
        running.aggregator("second").wait_for("standing by")
        running.worker(0).wait_for("update published")
        consumers = listed("list_consumers", "queue_name", "consumer_tag", "activity_status")
        connections = json.dumps(listed("list_connections", "client_properties"))

    consuming = {row["consumer_tag"]: row["activity_status"] for row in consumers if "updates" in str(row)}
    assert consuming == {
        f"{federation}/aggregator/first": "single_active",
        f"{federation}/aggregator/second": "waiting",
    }
    for name in ("aggregator/first", "aggregator/first/reads", "aggregator/second", "worker/site-0"):
        assert f'"{federation}/{name}"' in connections
