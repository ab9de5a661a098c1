"""What it costs to be looked at: the same updates with nobody watching, and with the page and Prometheus.

    python -m benchmarks.watched

Watched means: `fluffle dashboard` listens to the federation and asks RabbitMQ's management interface, and
each second somebody reads what an open page reads, and the aggregator's /metrics. Both sides run in turns; in
those of the unwatched one the page is frozen. The CPU is that of aggregator, clients and broker, without the
page's own, which usually has a machine of its own; the rates include it, since here it shares two cores with
them.
"""

import argparse
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from benchmarks.ingest import BUFFER_SIZE, Case, Effort
from benchmarks.measuring import Cell, Report, Spread, in_turns, wide_console
from benchmarks.sides import ProductSide, private_broker, product_side
from fluffle_cli.node import BrokerNode
from fluffle_cli.rabbitmq_server import free_ports
from harness.federation import Part, wait_until
from harness.strategy_flags import strategy_flags

CASES = (Case(0.1, 4, "fedbuff", "float32"), Case(1.0, 4, "fedbuff", "float32"))
LOOK_EVERY_S = 1.0
ANSWER_S = 5.0


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="watched", description="Measure what it costs to be looked at.")
    parser.add_argument("--repeats", type=int, default=8, help="turns that count (default: 8)")
    repeats = parser.parse_args().repeats
    report = Report("watched", "the same updates unwatched and watched")
    with private_broker(report, management=True) as (folder, node):
        for number, case in enumerate(CASES):
            with report.row() as row:
                row.update(beside_the_unwatched(case, folder / f"case-{number}", node, Effort(repeats)))
    report.show(wide_console())


def beside_the_unwatched(
    case: Case, folder: Path, node: BrokerNode, effort: Effort
) -> Mapping[str, Cell | Spread]:
    """Measure both in turns, and return the row."""
    updates, parameters = case.updates(effort.factor), round(case.size_mb * 1e6 / 4)
    flags = (*strategy_flags(case.strategy, BUFFER_SIZE), "--codec", case.codec)
    folder.mkdir()
    with (
        free_ports(2) as [metrics, page],
        product_side(folder / f"{folder.name}-unseen", node, case.clients, parameters, flags) as unseen,
        product_side(
            folder / f"{folder.name}-seen",
            node,
            case.clients,
            parameters,
            (*flags, "--metrics-port", str(metrics)),
        ) as seen,
        Onlookers.of(seen, page, metrics, node) as onlookers,
    ):

        def watched() -> float:
            with onlookers.looking():
                return seen.take_in(updates)

        turns = in_turns({"unwatched": lambda: unseen.take_in(updates), "watched": watched}, effort.repeats)
        for side in (unseen, seen):
            side.require_all_applied()
    rates = {side: spread.rates(updates) for side, spread in turns.items()}
    return {
        "size_mb": case.size_mb,
        "clients": case.clients,
        "n": updates,
        "unwatched_updates_s": rates["unwatched"],
        "watched_updates_s": rates["watched"],
        "ratio": turns["unwatched"].total / turns["watched"].total,
        "cpu_ratio": unseen.cpu.whole / seen.cpu.whole,
        "looks": len(onlookers.looks),
    }


@dataclass
class Onlookers:
    """The page, a browser and a scraper; out of their turns they are frozen, so as to take no CPU."""

    dashboard: Part
    addresses: Sequence[str]
    looks: list[int] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(cls, side: ProductSide, page: int, metrics: int, node: BrokerNode) -> Iterator[Self]:
        """Start the page, and freeze it."""
        dashboard = side.federation.start(
            "dashboard",
            *("fluffle_cli.main", "dashboard", "--dashboard-port", str(page)),
            *("--management-url", node.management_url or ""),
        )
        wait_until(lambda: "http://" in dashboard.log.read_text(), "the page's address")
        pages = [f"http://127.0.0.1:{page}/api/{part}" for part in ("state", "workers")]
        onlookers = cls(dashboard, [*pages, f"http://127.0.0.1:{metrics}/metrics"])
        dashboard.process.send_signal(signal.SIGSTOP)
        try:
            yield onlookers
        finally:
            dashboard.process.send_signal(signal.SIGCONT)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at once and then each second, while the block lasts; raises when a look fails."""
        ended = threading.Event()
        self.dashboard.process.send_signal(signal.SIGCONT)
        with ThreadPoolExecutor(1) as pool:
            looks = pool.submit(self._look_until, ended)
            try:
                yield
            finally:
                ended.set()
            self.looks += looks.result()
        self.dashboard.process.send_signal(signal.SIGSTOP)

    def _look_until(self, ended: threading.Event) -> list[int]:
        """Return the sizes of what was got, look by look."""
        looks: list[int] = []
        with httpx.Client(timeout=ANSWER_S) as client:
            while not ended.wait(LOOK_EVERY_S if looks else 0.0):
                answers = [client.get(address).raise_for_status() for address in self.addresses]
                looks.append(sum(len(answer.content) for answer in answers))
        return looks


if __name__ == "__main__":
    main()
