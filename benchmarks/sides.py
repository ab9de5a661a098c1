"""The two sides that are compared: the product's processes as a user starts them, and plain pika."""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Protocol

from benchmarks.floor import AckingOnly, declare, delete, server_version
from benchmarks.measuring import Report, cpu_s, random_floats
from benchmarks.publishers import Base, Publishers
from fluffle.safetensors_file import write_model
from fluffle.topology import MIB, topology_of
from fluffle_cli.node import BrokerNode
from fluffle_cli.rabbitmq_server import EXTRA_CONFIGURATION
from harness.federation import DEADLINE_S, Federation, Part

POLL_S = 0.005


@contextmanager
def private_broker(report: Report, *, management: bool = False) -> Iterator[tuple[Path, BrokerNode]]:
    """Start a RabbitMQ for one benchmark; give a folder that goes with it.

    Its log is of 32 MB instead of 512: it is full in each turn, and not in some of them only, where writing
    it away would make the difference.
    """
    with tempfile.TemporaryDirectory(prefix=f"fluffle-{report.benchmark}-") as place:
        folder = Path(place)
        extra = folder / "broker" / EXTRA_CONFIGURATION
        extra.mkdir(parents=True)
        (extra / "log.conf").write_text(f"raft.wal_max_size_bytes = {32 * MIB}\n")
        with BrokerNode.start(folder / "broker", management=management) as node:
            report.rabbitmq = server_version(node.amqp_url)
            yield folder, node


@dataclass
class CpuByRole:
    """The CPU seconds of each role in each turn; the first warms up."""

    pids: Mapping[str, Sequence[int]]
    turns: list[dict[str, float]] = field(default_factory=list)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Measure one turn."""
        before = self._now()
        yield
        self.turns.append({role: after - before[role] for role, after in self._now().items()})

    def by_role(self, factor: float) -> str:
        """Return the median seconds of each role in a turn, times a factor, as text."""
        return " + ".join(
            f"{factor * median(turn[role] for turn in self.turns[1:]):.2f}" for role in self.pids
        )

    @property
    def whole(self) -> float:
        """The median seconds of all roles together in a turn."""
        return median(sum(turn.values()) for turn in self.turns[1:])

    def _now(self) -> dict[str, float]:
        return {role: cpu_s(pids) for role, pids in self.pids.items()}


class Aggregator(Protocol):
    """What takes in updates, and tells when they are acked."""

    @property
    def pid(self) -> int:
        """Its process."""

    def wait_until_acked(self, updates: int) -> float:
        """Wait until so many are acked since the beginning; return when the last was (Unix time)."""


@dataclass
class Side:
    """Clients and an aggregator; what they take in is timed."""

    aggregator: Aggregator
    publishers: Publishers
    base: Base
    cpu: CpuByRole
    sent: int = 0

    def take_in(self, updates: int) -> float:
        """Return the seconds from the first publish until all are committed and acked."""
        self.sent += updates
        self.publishers.prepare(updates)
        with self.cpu.turn():
            began = self.publishers.start()
            ended = self.aggregator.wait_until_acked(self.sent)
        self.publishers.finish()
        return ended - began


@dataclass
class ProductSide(Side):
    """A real aggregator, and clients that publish through the product."""

    federation: Federation = field(kw_only=True)

    def require_all_applied(self) -> None:
        """Hold what was measured against what the broker says; nothing may be left or refused."""
        applied = self.federation.newest().updates
        with self.federation.connect() as broker:
            left = broker.state(self.federation.topology.updates.name).messages
        if (applied, left) != (self.sent, 0):
            raise RuntimeError(f"sent {self.sent} updates, but {applied} are applied and {left} queued")


class RealAggregator:
    """Follows the log of a real aggregator, which has a line for each commit as its acks go out."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._log = part.log.open()
        self._applied = 0
        self.pid = part.process.pid

    def wait_until_acked(self, updates: int) -> float:
        """See Aggregator."""
        deadline, line, ended = time.monotonic() + DEADLINE_S, "", 0.0
        while self._applied < updates:
            line += self._log.readline()
            if not line.endswith("\n"):
                if self._part.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the aggregator does not go on:\n{self._part.log.read_text()[-2000:]}"
                    )
                time.sleep(POLL_S)
                continue
            event, line = json.loads(line) if line.startswith("{") else {}, ""
            if event.get("event") == "version committed":
                self._applied += event["updates"]
                ended = datetime.fromisoformat(event["time"]).timestamp()
        return ended


@contextmanager
def product_side(
    place: Path, node: BrokerNode, clients: int, parameters: int, flags: Sequence[str]
) -> Iterator[ProductSide]:
    """Start a federation in a folder of its own with a model of so many random float32."""
    place.mkdir()
    write_model(place / "initial.safetensors", {"kernel": random_floats(parameters)})
    with Federation(place.name, node.amqp_url, place) as federation:
        part = federation.aggregator("aggregator", "--initial-model", "initial.safetensors", *flags)
        part.wait_for("leading")
        base = Base.of(federation.newest())
        with Publishers("product", node.amqp_url, base, clients) as publishers:
            aggregator = RealAggregator(part)
            yield ProductSide(
                aggregator, publishers, base, _cpu(aggregator, publishers, node), federation=federation
            )
    delete(node.amqp_url, topology_of(place.name))


@contextmanager
def floor_side(name: str, node: BrokerNode, clients: int, base: Base, every: int) -> Iterator[Side]:
    """Start the floor for the same updates; it replies with the bytes of the model after `every` of them."""
    topology = topology_of(name)
    declare(node.amqp_url, topology)
    with (
        AckingOnly(node.amqp_url, name, every, 4 * base.parameters) as aggregator,
        Publishers("pika", node.amqp_url, replace(base, federation=name), clients) as publishers,
    ):
        yield Side(aggregator, publishers, base, _cpu(aggregator, publishers, node))
    delete(node.amqp_url, topology)


def _cpu(aggregator: Aggregator, publishers: Publishers, node: BrokerNode) -> CpuByRole:
    return CpuByRole({"aggregator": [aggregator.pid], "clients": publishers.pids, "broker": [node.pid]})
