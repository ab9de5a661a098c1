"""The broker dies, or runs out of memory or disk: nothing is lost, nothing counts twice, nobody hangs."""

import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import DEADLINE_S, Federation, Part, end_and_balance, wait_until
from rabbitmqctl import rabbitmqctl

from fluffle.codecs.floats import Float32Vector
from fluffle.model import Layout
from fluffle.rabbit import RabbitBroker
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

TASK = "numpy_task:task"
BROKER_KILLS = 2
BLOCKED, UNBLOCKED = "RabbitMQ takes no messages for now: waiting", "RabbitMQ takes messages again"
# Whoever is asked to stop ends well within Docker's ten seconds; this is for a busy machine.
SOON_S = 30.0
VERSIONS = 1000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node of these tests' own, since they do it harm."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker"), management=False) as started:
        yield started


def published(workers: list[Part]) -> int:
    return sum(len(worker.events("update published")) for worker in workers)


def wait_for_more(workers: list[Part], more: int) -> None:
    goal = published(workers) + more
    wait_until(lambda: published(workers) >= goal, f"{more} more updates")


def test_a_broker_killed_at_random_times_loses_no_confirmed_update(node: BrokerNode, tmp_path: Path) -> None:
    seed = int(os.environ.get("FLUFFLE_TEST_SEED", random.SystemRandom().randrange(10**6)))
    sys.stdout.write(f"replay with FLUFFLE_TEST_SEED={seed}\n")
    rng = random.Random(seed)
    with Federation("random-kills", node.amqp_url, tmp_path, task=TASK) as federation:
        aggregators = [federation.aggregator(name, "--buffer-size", "3") for name in ("first", "second")]
        workers = [federation.worker(site, "--delay", "0.1") for site in range(4)]

        for _ in range(BROKER_KILLS):
            wait_for_more(workers, rng.randrange(4, 12))
            time.sleep(rng.uniform(0, 0.2))
            node.kill()
            node.restart()
        wait_for_more(workers, 8)

        end_and_balance(federation, workers=workers, aggregators=aggregators)


def test_an_update_sent_again_a_thousand_versions_later_is_a_duplicate(
    node: BrokerNode, tmp_path: Path
) -> None:
    with Federation("resent", node.amqp_url, tmp_path, task=TASK) as federation:
        flags = ["--buffer-size", "1", "--commit-every", "10", "--buffer-timeout", "1"]
        first = federation.aggregator("first", *flags)
        first.wait_for("leading")
        layout = federation.newest().layout
        bodies = [an_update(federation, layout, number) for number in range(VERSIONS)]
        early = bodies[:10]
        topology = federation.topology
        with RabbitBroker(node.amqp_url, name="resender", heartbeat_s=20, speaks_for="site-0") as broker:
            for body in bodies[: VERSIONS // 2]:
                broker.publish(topology.updates_in.name, "", body, {})
            first.kill()
            second = federation.aggregator("second", *flags)
            for body in bodies[VERSIONS // 2 :]:
                broker.publish(topology.updates_in.name, "", body, {})
            wait_until(lambda: newest_committed(second) == VERSIONS, f"version {VERSIONS}")

            for body in early:
                broker.publish(topology.updates_in.name, "", body, {})

            second.wait_for("refused", len(early))
            reasons = reasons_in(broker, topology.rejected.name, len(early))
        second.ask_to_stop()
        assert second.wait_for_exit() == 0
        assert reasons == ["duplicate"] * len(early)
        assert federation.newest().updates == federation.newest().version == VERSIONS


def an_update(federation: Federation, layout: Layout, number: int) -> bytes:
    """Return the message of one update of twenty runs, which take turns."""
    update = WeightUpdate(
        federation=federation.name,
        id=UpdateId("site-0", f"{number % 20:016x}", number // 20 + 1),
        base_term=1,
        base_version=0,
        layout_digest=layout.digest,
        sends="delta",
        codec="float32",
        vector=Float32Vector.of(np.full(layout.size, 1e-6, np.float32)),
        integers=b"",
        examples=10,
    )
    return encode_update(update)


def newest_committed(aggregator: Part) -> object:
    committed = aggregator.events("version committed")
    return committed[-1]["version"] if committed else None


def reasons_in(broker: RabbitBroker, queue: str, count: int) -> list[object]:
    broker.consume(queue, prefetch=count + 1)
    deliveries = [broker.next_delivery(DEADLINE_S) for _ in range(count)]
    return [delivery.headers["reason"] for delivery in deliveries if delivery]


@pytest.mark.parametrize(
    ("alarm", "over"),
    [
        (("set_vm_memory_high_watermark", "absolute", "1MB"), ("set_vm_memory_high_watermark", "0.4")),
        (("set_disk_free_limit", "900000GB"), ("set_disk_free_limit", "1MB")),
    ],
    ids=["memory", "disk"],
)
def test_in_an_alarm_everybody_waits_or_leaves_when_asked_to_and_then_goes_on(
    node: BrokerNode, tmp_path: Path, alarm: tuple[str, ...], over: tuple[str, ...]
) -> None:
    with Federation(f"alarm-{alarm[0][4:8]}", node.amqp_url, tmp_path, task=TASK) as federation:
        leader = federation.aggregator("leader", "--buffer-size", "2")
        workers = [federation.worker(site, "--delay", "0.1") for site in range(2)]
        wait_for_more(workers, 4)

        rabbitmqctl(node, *alarm)

        for worker in workers:
            worker.wait_for(BLOCKED)
        standby = federation.aggregator("standby", "--buffer-size", "2")
        standby.wait_for(BLOCKED)
        leaving = [workers.pop(), standby]
        for part in leaving:
            part.ask_to_stop()
        wait_until(
            lambda: all(part.process.poll() is not None for part in leaving), "an end", deadline_s=SOON_S
        )
        assert [part.process.returncode for part in leaving] == [0, 0]

        rabbitmqctl(node, *over)

        workers[0].wait_for(UNBLOCKED)
        workers.append(federation.worker(1, "--delay", "0.1"))
        workers[1].wait_for("update published", 2)
        end_and_balance(federation, workers=workers, aggregators=[leader])
