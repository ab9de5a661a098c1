"""Updates in the names of many workers, which this process publishes: each worker sends few of them."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from benchmarks.measuring import Cell, Report, Spread, random_floats, wide_console
from benchmarks.publishers import HEARTBEAT_S
from benchmarks.sides import RealAggregator, private_broker
from fluffle.codecs.floats import Float32Vector
from fluffle.model import Vector
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode
from harness.federation import Federation, Part

# Distinct vectors: each message is a different one, without minutes spent on drawing them.
VECTORS = 4


class Measured(Protocol):
    """Measures a model of so many parameters with one choice, and returns the row."""

    def __call__(
        self, place: Path, node: BrokerNode, parameters: int, choice: int, /, *, updates: int, repeats: int
    ) -> Mapping[str, Cell | Spread]:
        """Work in the folder `place`, which is there yet to make."""


def measure_each(
    measured: Measured,
    report: Report,
    *,
    about: str,
    parameters: Sequence[int],
    choices: tuple[str, Sequence[int]],
    repeats: int,
) -> None:
    """Read the flags of a benchmark, measure each number of parameters with each choice, write and print.

    `choices` are the name of their flag and its default.
    """
    name, default = choices
    parser = argparse.ArgumentParser(prog=report.benchmark, description=about)
    parser.add_argument("--parameters", type=int, nargs="+", default=parameters)
    parser.add_argument(f"--{name}", type=int, nargs="+", default=default, dest="choices")
    parser.add_argument("--updates", type=int, default=60, help="updates of a turn")
    parser.add_argument("--repeats", type=int, default=repeats, help="turns that count")
    given = parser.parse_args()
    with private_broker(report) as (folder, node):
        for size in given.parameters:
            for choice in given.choices:
                place = folder / f"{report.benchmark}-{size}-{choice}"
                with report.row() as row:
                    row.update(
                        measured(place, node, size, choice, updates=given.updates, repeats=given.repeats)
                    )
    report.show(wide_console())


@dataclass
class ManyWorkers:
    """An aggregator, and the workers in whose names updates are sent to it, one after the other."""

    federation: Federation
    part: Part
    version: ModelVersion
    workers: Sequence[str]
    sent: int = 0
    aggregator: RealAggregator = field(init=False)
    vectors: Sequence[Vector] = field(init=False)

    def __post_init__(self) -> None:
        """Follow its log, and draw the vectors."""
        self.aggregator = RealAggregator(self.part)
        size = self.version.layout.size
        self.vectors = [0.1 * random_floats(size, seed) for seed in range(VECTORS)]

    def update(self, number: int) -> WeightUpdate:
        """Return the update of this number, each time of the next worker."""
        worker = self.workers[number % len(self.workers)]
        return WeightUpdate(
            federation=self.federation.name,
            id=UpdateId(worker, "run", number // len(self.workers) + 1),
            base_term=self.version.term,
            base_version=self.version.version,
            layout_digest=self.version.layout.digest,
            sends="delta",
            codec="float32",
            vector=Float32Vector.of(self.vectors[number % VECTORS]),
            examples=32,
        )

    def take_in(self, count: int) -> float:
        """Return the seconds from the first publish until so many are committed and acked."""
        bodies = [
            (one.id.worker, encode_update(one))
            for one in map(self.update, range(self.sent, self.sent + count))
        ]
        self.sent += count
        exchange = self.federation.topology.updates_in.name
        with RabbitBroker(self.federation.broker_url, name="client", heartbeat_s=HEARTBEAT_S) as broker:
            began = datetime.now().astimezone().timestamp()
            for worker, body in bodies:
                broker.publish_as(worker, exchange, "", body, {"kind": "update"})
            return self.aggregator.wait_until_acked(self.sent) - began

    def require_all_applied(self) -> None:
        """Hold what was measured against the newest version: nothing may have been refused."""
        applied = self.federation.newest().updates
        if applied != self.sent:
            raise RuntimeError(f"sent {self.sent} updates, but {applied} are applied")
