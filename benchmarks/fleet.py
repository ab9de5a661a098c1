"""Many workers on one aggregator: is any update lost, is anybody served worse, and what grows with them.

    PYTHONPATH=tests python -m benchmarks.fleet --plot docs/images/fleet.png

Light workers (threads of four processes, each with a connection and a spool; softmax on 32 digits, 4,810
parameters) run the product's own loop, and pause for 2 to 6 s in each round, each at a pace of its own. The
aggregator is as a user starts it, with FedBuff K=10. After a warm-up it is measured for a while; then the
workers are asked to stop, and every update that the broker confirmed is looked for.

`updates_s` are applied in the measured time, and `asked_s` is what the workers would send if nobody ever
waited. `wait_ms` is the median over the workers of their mean wait, from the beginning of a publish until the
commit of the version that contains the update; `worst_wait` divides the longest mean wait of a worker by that
median. `staleness` counts versions, as mean and 99th percentile; `queue` is the number of updates in the
broker that are not acked, as mean and maximum. `aggregator_cpu` and `workers_cpu` are in cores; `_mb` is peak
resident memory. `lost` counts confirmed updates that are neither applied nor rejected nor queued.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import numpy as np
import psutil
from federation import Federation, Part, wait_until
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import small_networks
from benchmarks.floor import delete
from benchmarks.measuring import Cell, OtherWork, Report, cpu_s, wide_console
from fluffle.models import all_versions
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.safetensors_file import write_model
from fluffle_cli.node import BrokerNode

SIZES = (10, 50, 100, 250, 500)
PROCESSES = 4
PAUSES_S = (2.0, 6.0)
BUFFER_SIZE = 10
WARM_UP_S, MEASURED_S = 15.0, 40.0
LOOK_EVERY_S = 0.25
# Promised by the broker: whoever waits longest waits at most so many times as long as the median.
FAIR = 3.0


@dataclass
class Watch:
    """What is seen of a federation while it is measured."""

    broker: RabbitBroker
    queue: str
    roles: dict[str, list[int]]
    at: list[float] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)

    def look_for(self, duration_s: float) -> None:
        """Look again and again."""
        began = time.time()
        before = {role: cpu_s(pids) for role, pids in self.roles.items()}
        while time.time() < began + duration_s:
            self.at.append(time.time())
            self.depths.append(self.broker.state(self.queue).messages)
            for role, pids in self.roles.items():
                resident = sum(psutil.Process(pid).memory_info().rss for pid in pids)
                self.peak_bytes[role] = max(self.peak_bytes.get(role, 0), resident)
            time.sleep(LOOK_EVERY_S)
        for role, pids in self.roles.items():
            self.cores[role] = (cpu_s(pids) - before[role]) / (time.time() - began)


@dataclass(frozen=True, slots=True)
class Run:
    """One size of the fleet: what was seen, what the broker confirmed, and every version."""

    workers: int
    watch: Watch
    ledger: dict[str, tuple[float, float]]
    versions: list[ModelVersion]
    rejected: int
    queued: set[str]

    @property
    def began(self) -> float:
        """When the measured time began (Unix time)."""
        return self.watch.at[0]

    def measured(self) -> Iterator[tuple[str, str, int, float]]:
        """Yield worker, id, staleness and commit time of the updates applied in the measured time."""
        for version in self.versions:
            if self.began <= version.committed_at <= self.watch.at[-1]:
                for one in version.folded:
                    yield one.id.worker, str(one.id), one.staleness, version.committed_at

    @property
    def applied(self) -> list[str]:
        """The ids of all updates that were applied, each as often as it was."""
        return [str(one.id) for version in self.versions for one in version.folded]

    def mean_waits_s(self) -> list[float]:
        """Return each worker's mean wait."""
        waits: dict[str, list[float]] = {}
        for worker, update, _, committed_at in self.measured():
            if update in self.ledger:
                waits.setdefault(worker, []).append(committed_at - self.ledger[update][0])
        return [mean(each) for each in waits.values()]

    def row(self) -> dict[str, Cell]:
        """Return the row of the table; raises RuntimeError when a promise is broken."""
        applied, found = self.applied, list(self.measured())
        if len(set(applied)) != len(applied):
            raise RuntimeError(f"{len(applied) - len(set(applied))} updates were applied twice")
        lost = set(self.ledger) - set(applied) - self.queued
        waits = self.mean_waits_s()
        staleness = [each for _, _, each, _ in found]
        paces = [pause_s(index) for index in range(self.workers)]
        return {
            "workers": self.workers,
            "asked_s": sum(1 / pace for pace in paces),
            "updates_s": len(found) / (self.watch.at[-1] - self.began),
            "wait_ms": 1000 * median(waits),
            "worst_wait": max(waits) / median(waits),
            "staleness": f"{mean(staleness):.1f} / {np.percentile(staleness, 99):.0f}",
            "queue": f"{mean(self.watch.depths):.1f} / {max(self.watch.depths)}",
            **{f"{role}_cpu": cores for role, cores in self.watch.cores.items()},
            **{f"{role}_mb": peak / 1e6 for role, peak in self.watch.peak_bytes.items()},
            "confirmed": len(self.ledger),
            "applied": len(applied),
            "rejected": self.rejected,
            "lost": max(0, len(lost) - self.rejected),
        }


def pause_s(index: int) -> float:
    """Return how long a worker pauses in each round, as fleet_workers draws it."""
    return float(np.random.default_rng(index).uniform(*PAUSES_S))


def main() -> None:
    """Measure, write, print and plot."""
    parser = argparse.ArgumentParser(prog="fleet", description="Measure what grows with the workers.")
    parser.add_argument("--workers", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=MEASURED_S, help="measured after a warm-up")
    parser.add_argument("--plot", type=Path, help="PNG of the largest fleet, and of what grows")
    arguments = parser.parse_args()
    console = wide_console()
    report = Report("fleet", "fleet: many light workers on one aggregator")
    runs = [measure(workers, arguments.seconds, report, console) for workers in arguments.workers]
    report.show(console)
    if arguments.plot:
        plot(arguments.plot, runs, report)
    unfair = [row for row in report.rows if row["lost"] or float(str(row["worst_wait"])) > FAIR]
    if unfair:
        raise SystemExit(f"lost or unfair: {unfair}")


def measure(workers: int, duration_s: float, report: Report, console: Console) -> Run:
    """Measure one size on a private RabbitMQ of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="fluffle-fleet-") as place,
        BrokerNode.start(Path(place) / "broker", management=False) as node,
        console.status(f"fleet of {workers}"),
        Federation("fleet", node.amqp_url, Path(place)) as federation,
        federation.connect() as broker,
    ):
        write_model(Path(place) / "initial.safetensors", small_networks.digits.initial_weights(0))
        flags = ("--initial-model", "initial.safetensors", "--buffer-size", str(BUFFER_SIZE))
        aggregator = federation.aggregator("aggregator", *flags)
        aggregator.wait_for("leading")
        with fleet(federation, workers) as processes:
            roles = {
                "aggregator": [aggregator.process.pid],
                "workers": [process.pid for process in processes],
                "broker": [node.pid],
            }
            wait_until(lambda: federation.newest().updates >= workers, "the first updates")
            time.sleep(WARM_UP_S)
            watch = Watch(broker, federation.topology.updates.name, roles)
            others = OtherWork()
            watch.look_for(duration_s)
            others_share = others.share
        run = _balance(federation, broker, aggregator, watch, workers)
        report.add(run.row(), others=others_share)
        delete(node.amqp_url, federation.topology)
    return run


@contextmanager
def fleet(federation: Federation, workers: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run so many workers; at the end they write their ledgers."""
    environment = os.environ | {"FLUFFLE_BROKER_URL": federation.broker_url, "OMP_NUM_THREADS": "1"}
    program = str(Path(__file__).with_name("fleet_workers.py"))
    said = ["--federation", federation.name, "--folder", str(federation.folder)]
    said += ["--pauses", *map(str, PAUSES_S)]
    edges = np.linspace(0, workers, PROCESSES + 1).astype(int).tolist()
    processes = [
        subprocess.Popen([sys.executable, program, str(first), str(end - first), *said], env=environment)
        for first, end in pairwise(edges)
    ]
    try:
        yield processes
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            if process.wait(120):
                raise RuntimeError(f"workers ended with {process.returncode}")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _balance(
    federation: Federation, broker: RabbitBroker, aggregator: Part, watch: Watch, workers: int
) -> Run:
    """Let the aggregator take what waits, end it, and read what became of every update."""
    topology = federation.topology
    # A buffer that is not full stays with the aggregator, unacked, and goes back when that ends.
    taken = threading.Event()
    wait_until(lambda: broker.state(topology.updates.name).messages == 0 or taken.wait(5), "the rest")
    aggregator.ask_to_stop()
    aggregator.wait_for_exit()
    queued = {str(each) for each in federation.waiting_in(topology.updates.name)}
    ledger: dict[str, tuple[float, float]] = {}
    for path in sorted(federation.folder.glob("ledger-*.jsonl")):
        for line in path.read_text().splitlines():
            update, began, confirmed = json.loads(line)
            ledger[update] = began, confirmed
    versions = list(all_versions(broker, topology))
    return Run(workers, watch, ledger, versions, broker.state(topology.rejected.name).messages, queued)


def plot(path: Path, runs: Sequence[Run], report: Report) -> None:
    """Draw staleness and queue of the largest fleet over time, and what grows from size to size."""
    largest = max(runs, key=lambda run: run.workers)
    figure = Figure(figsize=(11, 6), layout="constrained")
    figure.suptitle(f"{largest.workers} workers on one aggregator, and what grows up to there")
    (late, deep), (rate, memory) = figure.subplots(2, 2)
    found = list(largest.measured())
    late.plot([at - largest.began for *_, at in found], [each for _, _, each, _ in found], ".", alpha=0.15)
    late.set(xlabel="seconds", ylabel="staleness (versions)", title="How late each update was")
    deep.plot([at - largest.began for at in largest.watch.at], largest.watch.depths)
    deep.set(xlabel="seconds", ylabel="updates", title="In the queue, not acked", ylim=(0, None))
    sizes = [run.workers for run in runs]
    for name, label in (("asked_s", "asked"), ("updates_s", "applied")):
        rate.plot(sizes, [float(str(row[name])) for row in report.rows], "o-", label=label)
    rate.set(xlabel="workers", ylabel="updates a second", title="Throughput")
    for role in ("aggregator", "broker"):
        memory.plot(sizes, [float(str(row[f"{role}_mb"])) for row in report.rows], "o-", label=role)
    memory.set(xlabel="workers", ylabel="MB", title="Peak resident memory", ylim=(0, None))
    for axes in (late, deep, rate, memory):
        axes.grid(alpha=0.3)
    rate.legend()
    memory.legend()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
