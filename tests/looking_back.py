"""One real run that several tests look at, while it goes on and once it is over."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pika
from brokers import all_versions
from federation import DEADLINE_S, Federation, Part
from rabbitmqctl import add_user

from fluffle.record import ModelVersion
from fluffle.rights import rights_of
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode
from harness.sending import an_update_for, send

UPDATES = 12
NAME = "looked-back-at"


@dataclass(frozen=True)
class Run:
    """A federation that has finished, and what a monitor saw of it meanwhile."""

    federation: Federation
    versions: Sequence[ModelVersion]
    leader: Part
    workers: Mapping[str, Part]
    evaluator: Part
    monitor_url: str
    watched: str
    message_ids: frozenset[str]


@contextmanager
def a_run(node: BrokerNode, folder: Path, *evaluator_flags: str) -> Iterator[Run]:
    """Let two workers train and an evaluator judge, while a monitor watches.

    Of what site-9 sends, one update counts; its copy, another one and rubbish are refused.
    """
    monitor = f"{NAME}-monitor"
    monitor_url = add_user(node, monitor, **rights_of("monitor", NAME, monitor).patterns)
    with Federation(NAME, node.amqp_url, folder, task="numpy_task:task") as federation:
        flags = ["--buffer-size", "2", "--local-steps", "5", "--max-updates", str(UPDATES)]
        leader = federation.aggregator("leader", *flags)
        leader.wait_for("leading")
        evaluator = federation.evaluator(*evaluator_flags)
        evaluator.wait_for("evaluated")
        exchanges = federation.topology.updates_in.name, federation.topology.versions_in.name
        with _an_eavesdropper(node.amqp_url, exchanges) as message_ids, _a_watcher(monitor_url) as watcher:
            assert watcher.stdout is not None
            first_look = watcher.stdout.readline()
            base = federation.newest()
            first, second = (an_update_for(base, sequence) for sequence in (1, 2))
            from_the_future = encode_update(replace(second, base_version=99))
            send(federation, [encode_update(first), encode_update(first), from_the_future, b"rubbish"])
            leader.wait_for("refused", 3)
            workers = [federation.worker(site, sites=2) for site in (0, 1)]
            later_looks, _ = watcher.communicate(timeout=DEADLINE_S)
            for part in (leader, evaluator, *workers):
                assert part.wait_for_exit() == 0, part.log.read_text()
            ids = frozenset(message_ids())
        with federation.connect() as broker:
            versions = list(all_versions(broker, federation.topology))
        yield Run(
            federation=federation,
            versions=versions,
            leader=leader,
            workers={"site-0": workers[0], "site-1": workers[1]},
            evaluator=evaluator,
            monitor_url=monitor_url,
            watched=first_look + later_looks,
            message_ids=ids,
        )


@contextmanager
def _an_eavesdropper(url: str, exchanges: Iterable[str]) -> Iterator[Callable[[], Iterator[str]]]:
    """Give what returns the message_ids of all that went through these exchanges meanwhile."""
    # No heartbeats: nobody answers them meanwhile, and RabbitMQ would close the connection.
    with pika.BlockingConnection(pika.URLParameters(f"{url}?heartbeat=0")) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        for exchange in exchanges:
            channel.queue_bind(queue, exchange)

        def message_ids() -> Iterator[str]:
            while (message := channel.basic_get(queue, auto_ack=True))[0] is not None:
                yield str(message[1].message_id)

        yield message_ids


@contextmanager
def _a_watcher(url: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "fluffle_cli.main", "status", "--watch", "--interval", "0.2", "--json"],
        env=os.environ | {"FLUFFLE_FEDERATION": NAME, "FLUFFLE_BROKER_URL": url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as watcher:
        try:
            yield watcher
        finally:
            watcher.kill()
