"""Somebody deletes a queue or an exchange, takes rights away or deletes a user, under a running federation.

Whoever cannot go on says so in one sentence and ends; whoever waits says what for, less and less often.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import numpy as np
import pika
import pytest
from federation import Federation, Part, assert_refused, wait_until
from rabbitmqctl import add_user, rabbitmqctl

from fluffle.safetensors_file import write_model
from fluffle.topology import topology_of
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

TASK = "numpy_task:task"
EVERY_QUEUE = ("updates", "rejected", "head", "models")
EVERY_EXCHANGE = ("updates", "evaluations", "versions", "head", "stream", "rejected")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node of these tests' own: what they leave behind is in nobody's way."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker"), management=False) as started:
        yield started


def delete(node: BrokerNode, *, queues: list[str], exchanges: list[str]) -> None:
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        channel = connection.channel()
        # Who waits looks for the exchanges first: what is missing for them is the same from now on.
        for exchange in exchanges:
            channel.exchange_delete(exchange)
        for queue in queues:
            channel.queue_delete(queue)


def test_an_aggregator_ends_with_a_sentence_whichever_queue_or_exchange_is_deleted(
    node: BrokerNode, tmp_path: Path
) -> None:
    # No task, which takes each of them seconds to import.
    write_model(tmp_path / "initial.safetensors", {"kernel": np.zeros(4, np.float32)})
    with ExitStack() as stack:
        leaders: dict[str, Part] = {}
        queues: list[str] = []
        exchanges: list[str] = []
        for kind, names in (("queue", EVERY_QUEUE), ("exchange", EVERY_EXCHANGE)):
            for name in names:
                federation = Federation(f"no-{kind}-{name}", node.amqp_url, tmp_path, task=TASK)
                stack.enter_context(federation)
                leader = federation.aggregator(f"{kind}-{name}", "--initial-model", "initial.safetensors")
                leaders[f"{kind} '{federation.name}.{name}'"] = leader
                (queues if kind == "queue" else exchanges).append(f"{federation.name}.{name}")
        for leader in leaders.values():
            leader.wait_for("leading")

        delete(node, queues=queues, exchanges=exchanges)

        for missing, leader in leaders.items():
            is_consumed = missing.startswith("queue") and missing.endswith(".updates'")
            assert_refused(leader, "its queue was deleted" if is_consumed else f"no {missing}")


def test_who_works_with_what_is_deleted_waits_until_an_aggregator_makes_it_anew(
    node: BrokerNode, tmp_path: Path
) -> None:
    with Federation("deleted", node.amqp_url, tmp_path, task=TASK) as federation:
        leader = federation.aggregator("leader", "--buffer-size", "1")
        standby = federation.aggregator("standby", "--buffer-size", "1")
        worker, evaluator = federation.worker(0, "--delay", "0.1"), federation.evaluator()
        evaluator.wait_for("evaluated")
        standby.wait_for("standing by")

        delete(node, queues=["deleted.models"], exchanges=["deleted.updates"])

        # Either the look now and then finds it, or the leader, when it goes on from the stream.
        for part in (leader, standby):
            assert_refused(part, "is not on RabbitMQ", "deleted.")
        for part in (worker, evaluator):
            part.wait_for("waiting for the federation", 5)
            assert_waits_are_apart(part)
        evaluated, published = len(evaluator.events("evaluated")), len(worker.events("update published"))
        federation.aggregator("reborn", "--buffer-size", "1")
        worker.wait_for("update published", published + 2)
        evaluator.wait_for("evaluated", evaluated + 1)


def assert_waits_are_apart(part: Part) -> None:
    """Hold that the pauses grow from half a second on, by chance; five at once would be a storm."""
    said = part.events("waiting for the federation")
    first, last = (datetime.fromisoformat(str(line["time"])) for line in (said[0], said[-1]))
    # Four pauses, drawn from 0 to 0.5, 1, 2 and 4 seconds; they are all this short once in ten thousand runs.
    assert (last - first).total_seconds() > 0.3
    assert len({str(line["because"]) for line in said}) == 1


@pytest.mark.parametrize("taken", ["rights", "user"])
def test_who_loses_the_user_or_its_rights_ends_with_a_sentence(
    node: BrokerNode, tmp_path: Path, taken: str
) -> None:
    user = f"no-{taken}"
    url = add_user(node, user, configure=".*", write=".*", read=".*")
    rabbitmqctl(node, "set_user_tags", user, "impersonator")
    topology = topology_of(f"no-{taken}")
    with Federation(topology.federation, url, tmp_path, task=TASK) as federation:
        impatient = "--login-patience", "2"
        aggregators = [
            federation.aggregator(name, "--buffer-size", "1", *impatient) for name in ("first", "second")
        ]
        others = [federation.worker(0, "--delay", "0.1", *impatient), federation.evaluator(*impatient)]
        others[1].wait_for("evaluated")
        for aggregator in aggregators:
            aggregator.wait_for("standing by")

        if taken == "user":
            rabbitmqctl(node, "delete_user", user)
        else:
            rabbitmqctl(node, "set_permissions", user, "^$", "^$", "^$")

        for part in others:
            assert_refused(part, f"'{user}'")
        # Idle aggregators need no rights; RabbitMQ looks at them anew when a channel was idle a while.
        federation.broker_url = node.amqp_url
        with federation.connect() as broker:

            def have_ended() -> bool:
                if taken == "rights":
                    broker.publish(topology.updates_in.name, "", b"something to refuse", {})
                return all(part.process.poll() is not None for part in aggregators)

            wait_until(have_ended, "the end of both aggregators", every_s=3.0)
        for part in aggregators:
            assert_refused(part, f"'{user}'")
