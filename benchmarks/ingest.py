"""How many updates a second the whole path takes in, beside pika alone on the same queues.

    PYTHONPATH=tests python benchmarks/ingest.py

Client processes publish real updates, and wait for each confirm. A real aggregator decodes, admits, folds,
commits durably and acks. The time goes from the first publish until the last update is acked. In turns with
that, the floor: the same messages by plain pika, and an aggregator that only acks and republishes a body of
the model's size at the same rhythm, on queues with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path

from bandwidth import bandwidths
from federation import DEADLINE_S, Federation, Part
from floor import AckingOnly, declare, delete
from measuring import Cell, Report, Spread, in_turns, random_floats, wide_console
from publishers import Base, Publishers
from rich.console import Console

from fluffle.safetensors_file import write_model
from fluffle.topology import topology_of
from fluffle.wire import encode_version
from fluffle_cli.node import BrokerNode

BUFFER_SIZE = 10
SIZES_MB = (0.1, 1.0, 10.0, 100.0)
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: the model's size as float32, who publishes, and what the aggregator does with it."""

    size_mb: float
    clients: int
    strategy: str
    codec: str

    @property
    def every(self) -> int:
        """The updates in one commit."""
        return BUFFER_SIZE if self.strategy == "fedbuff" else 1

    def updates(self, effort: float) -> int:
        """Return how many updates make a turn of a second or more, in whole commits."""
        wanted = effort * min(600.0, 300.0 / self.size_mb if self.size_mb >= 1 else 300.0 / self.size_mb**0.5)
        least = self.every if self.size_mb < 100 or self.every > 1 else 4
        return max(least, round(wanted / self.every) * self.every)


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each side is measured, and how many updates a turn has against the usual."""

    repeats: int = 3
    factor: float = 1.0


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="ingest", description="Measure updates a second beside pika's.")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_MB, help="MB of float32")
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 4), help="client processes")
    parser.add_argument("--strategies", nargs="+", default=("fedbuff", "fedasync"))
    parser.add_argument("--codecs", nargs="+", default=("float32",))
    parser.add_argument("--repeats", type=int, default=3, help="turns that count (default: 3)")
    parser.add_argument("--effort", type=float, default=1.0, help="factor on the updates of a turn")
    arguments = parser.parse_args()
    cases = [
        Case(*each)
        for each in product(arguments.sizes, arguments.clients, arguments.strategies, arguments.codecs)
    ]
    console = wide_console()
    report = Report("ingest", "ingest: the whole path beside an aggregator that only acks and republishes")
    measure_all(cases, report, console, Effort(arguments.repeats, arguments.effort))
    report.show(console)


def measure_all(cases: Sequence[Case], report: Report, console: Console, effort: Effort) -> None:
    """Measure one case after the other on one private RabbitMQ."""
    with tempfile.TemporaryDirectory(prefix="fluffle-ingest-") as place:
        folder = Path(place)
        with BrokerNode.start(folder / "broker", management=False) as node, console.status("") as status:
            for number, case in enumerate(cases):
                status.update(f"ingest {number + 1} of {len(cases)}: {case}")
                with report.row() as row:
                    row.update(_measure(case, folder / f"ingest-{number}", node.amqp_url, effort))


def _measure(case: Case, folder: Path, url: str, effort: Effort) -> Mapping[str, Cell | Spread]:
    updates = case.updates(effort.factor)
    with (
        _product_side(case, folder, url) as (product_side, base, record_bytes),
        _floor_side(case, f"{folder.name}-floor", url, base, record_bytes) as floor_side,
    ):
        turns = in_turns(
            {"product": lambda: product_side.take_in(updates), "floor": lambda: floor_side.take_in(updates)},
            effort.repeats,
        )
        product_side.require_all_applied()
    rates = {side: spread.rates(updates) for side, spread in turns.items()}
    return {
        "size_mb": case.size_mb,
        "clients": case.clients,
        "strategy": case.strategy,
        "codec": case.codec,
        "updates_in_a_turn": updates,
        "updates_s": rates["product"],
        "floor_updates_s": rates["floor"],
        "ratio": rates["product"].over(rates["floor"]),
        "float32_mb_s": rates["product"].times(case.size_mb).median,
        "memory_copy_mb_s": bandwidths(base.parameters, effort.repeats)["copy"].times(1e-6).median,
    }


class ProductSide:
    """A real aggregator, and clients that publish through the product."""

    def __init__(self, federation: Federation, aggregator: Part, publishers: Publishers) -> None:
        self._federation = federation
        self._publishers = publishers
        self._log = aggregator.log.open()
        self._aggregator = aggregator
        self._sent = self._applied = 0

    def take_in(self, updates: int) -> float:
        """Return the seconds from the first publish until all is committed and acked."""
        self._sent += updates
        began = self._publishers.start(updates)
        ended = self._wait_until_applied()
        self._publishers.finish()
        return ended - began

    def require_all_applied(self) -> None:
        """Hold what was measured against what the broker says; nothing may be left or refused."""
        applied = self._federation.newest().updates
        with self._federation.connect() as broker:
            left = broker.state(self._federation.topology.updates.name).messages
        if (applied, left) != (self._sent, 0):
            raise RuntimeError(f"sent {self._sent} updates, but {applied} are applied and {left} queued")

    def _wait_until_applied(self) -> float:
        """Follow the aggregator's log, which has a line for each commit when its updates are acked."""
        deadline, line, ended = time.monotonic() + DEADLINE_S, "", 0.0
        while self._applied < self._sent:
            line += self._log.readline()
            if not line.endswith("\n"):
                if self._aggregator.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the aggregator does not go on:\n{self._aggregator.log.read_text()[-2000:]}"
                    )
                time.sleep(POLL_S)
                continue
            event, line = json.loads(line) if line.startswith("{") else {}, ""
            if event.get("event") == "version committed":
                self._applied += event["updates"]
                ended = datetime.fromisoformat(event["time"]).timestamp()
        return ended


class FloorSide:
    """An aggregator that does nothing, and clients that publish through pika alone."""

    def __init__(self, aggregator: AckingOnly, publishers: Publishers) -> None:
        self._aggregator = aggregator
        self._publishers = publishers
        self._sent = 0

    def take_in(self, updates: int) -> float:
        """Return the seconds from the first publish until all is acked."""
        self._sent += updates
        began = self._publishers.start(updates)
        acked, ended = 0, 0.0
        while acked < self._sent:
            acked, ended = self._aggregator.acked()
        self._publishers.finish()
        return ended - began


@contextmanager
def _product_side(case: Case, place: Path, url: str) -> Iterator[tuple[ProductSide, Base, int]]:
    place.mkdir()
    size = round(case.size_mb * 1e6 / 4)
    write_model(place / "initial.safetensors", {"kernel": random_floats(size)})
    with Federation(place.name, url, place) as federation:
        aggregator = federation.aggregator(
            *("aggregator", "--initial-model", "initial.safetensors"),
            *("--strategy", case.strategy, "--buffer-size", str(BUFFER_SIZE), "--codec", case.codec),
        )
        aggregator.wait_for("leading")
        version = federation.newest()
        base = Base.of(version)
        with Publishers("product", url, base, case.clients) as publishers:
            yield ProductSide(federation, aggregator, publishers), base, len(encode_version(version))
    delete(url, topology_of(place.name))


@contextmanager
def _floor_side(case: Case, name: str, url: str, base: Base, reply_bytes: int) -> Iterator[FloorSide]:
    declare(url, topology_of(name))
    with (
        AckingOnly(url, name, case.every, reply_bytes) as aggregator,
        Publishers("pika", url, replace(base, federation=name), case.clients) as publishers,
    ):
        yield FloorSide(aggregator, publishers)
    delete(url, topology_of(name))


if __name__ == "__main__":
    main()
