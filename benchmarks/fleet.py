"""Many workers on one aggregator: is any update lost, is anybody served worse, and what grows with them.

    python -m benchmarks.fleet

Light workers (threads of ten processes, each with a connection and a spool; softmax on 32 digits, 4,810
parameters) run the product's own loop, and pause for 10 to 30 s in each round, each at a pace of its own. The
aggregator is as a user starts it, with FedBuff K=10. After a warm-up it is measured for a while; then the
workers are asked to stop, and every update that the broker confirmed is looked for by its id.

`updates_s` are committed a second in the measured time, `of` is what the workers would send if nobody ever
waited. An update's wait goes from the beginning of its publish until it is both confirmed and folded: that
is what broker and aggregator owe a worker. It leaves out how long the buffer takes to fill, which is shorter
the more workers there are. `wait_ms` is the median over the workers of the mean wait of what each published
in the measured time; `worst` divides the longest mean of a worker by that median.

`staleness` counts versions, as mean and 99th percentile. `queue` is, as mean and maximum, how many updates
the broker had confirmed and not yet seen acked: those that are ready, and those that the aggregator holds
until a version contains them. `lost` counts confirmed updates that are neither applied nor rejected nor
queued. Ends with 1 when an update was lost, or when a worker waited more than 3 times the median.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import mean, median

import numpy as np
import psutil
from rich.console import Console

from benchmarks import small_networks
from benchmarks.measuring import Cell, OtherWork, Report, cpu_s, wide_console
from benchmarks.sides import private_broker
from fluffle.model_stream import all_stored
from fluffle.rabbit import RabbitBroker
from fluffle.record import Folded
from fluffle.safetensors_file import write_model
from harness.federation import Federation, Part, wait_until

SIZES = (10, 100, 500)
# More threads in one process would wait for each other, not for the federation.
PROCESSES = 10
PAUSES_S = (10.0, 30.0)
BUFFER_SIZE = 10
FEDBUFF = ("--strategy", "fedbuff", "--buffer-size", str(BUFFER_SIZE))
# A dozen updates of each worker, so that a mean is one.
WARM_UP_S, MEASURED_S = 10.0, 240.0
LOOK_EVERY_S = 0.5
# Whoever waits longest waits at most so many times as long as the median.
FAIR = 3.0
SHOWN = (
    "workers",
    "updates_s",
    "of",
    "wait_ms",
    "worst",
    "staleness",
    "queue",
    "aggregator",
    "broker_mb",
    "lost",
)


@dataclass
class Watch:
    """What is seen of the processes while they are measured."""

    roles: dict[str, list[int]]
    began: float = 0.0
    ended: float = 0.0
    peak_mb: dict[str, float] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)

    def look_for(self, duration_s: float) -> None:
        """Look again and again."""
        before = {role: cpu_s(pids) for role, pids in self.roles.items()}
        self.began = time.time()
        while time.time() < self.began + duration_s:
            for role, pids in self.roles.items():
                resident = sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6
                self.peak_mb[role] = max(self.peak_mb.get(role, 0.0), resident)
            time.sleep(LOOK_EVERY_S)
        self.ended = time.time()
        for role, pids in self.roles.items():
            self.cores[role] = (cpu_s(pids) - before[role]) / (self.ended - self.began)

    def __contains__(self, at: float) -> bool:
        return self.began <= at <= self.ended

    @property
    def seconds(self) -> Sequence[float]:
        """The moments for which a course over time is given."""
        return [float(each) for each in np.arange(self.began, self.ended, LOOK_EVERY_S)]


@dataclass(frozen=True, slots=True)
class Sent:
    """When the publish of an update began, and when the broker had confirmed it (Unix time)."""

    began: float
    confirmed: float


@dataclass(frozen=True, slots=True)
class Balance:
    """What became of every update. `applied` has the commit's time; times are Unix time."""

    sent: dict[str, Sent]
    folded_at: dict[str, float]
    applied: list[tuple[Folded, float]]
    rejected: set[str]
    queued: set[str]

    @property
    def lost(self) -> set[str]:
        """The ids that the broker confirmed, and that are nowhere."""
        return set(self.sent) - {str(one.id) for one, _ in self.applied} - self.rejected - self.queued

    def require_nothing_twice(self) -> None:
        """Raise RuntimeError when an update was applied twice."""
        twice = [
            update for update, times in Counter(str(one.id) for one, _ in self.applied).items() if times > 1
        ]
        if twice:
            raise RuntimeError(f"{len(twice)} updates were applied twice, such as {twice[0]}")

    def mean_waits_s(self, watch: Watch) -> dict[str, float]:
        """Return each worker's mean wait, of what it began to publish in the measured time."""
        waits: dict[str, list[float]] = {}
        for update, sent in self.sent.items():
            if sent.began in watch and update in self.folded_at:
                until = max(sent.confirmed, self.folded_at[update])
                waits.setdefault(update.split("/")[0], []).append(until - sent.began)
        return {worker: mean(each) for worker, each in waits.items()}

    def depths(self, seconds: Sequence[float]) -> list[int]:
        """Return how many updates were confirmed and not acked at each moment: ready, or held."""
        acked = {str(one.id): at for one, at in self.applied}
        known = [(sent.confirmed, acked[update]) for update, sent in self.sent.items() if update in acked]
        came = np.sort([min(confirmed, at) for confirmed, at in known])
        left = np.sort([at for _, at in known])
        counts = np.searchsorted(came, seconds) - np.searchsorted(left, seconds)
        return [int(each) for each in counts]


def row(workers: int, watch: Watch, balance: Balance) -> dict[str, Cell]:
    """Return the row of one size of the fleet; raises RuntimeError when a worker was not served at all."""
    balance.require_nothing_twice()
    measured = [(one.staleness, at) for one, at in balance.applied if at in watch]
    staleness = [each for each, _ in measured]
    waits = balance.mean_waits_s(watch)
    if len(waits) < workers:
        raise RuntimeError(f"of {workers} workers, only {len(waits)} had an update folded that they sent")
    depths = balance.depths(watch.seconds)
    slices = [
        [each for each, at in measured if second <= at < second + LOOK_EVERY_S] for second in watch.seconds
    ]
    return {
        "workers": workers,
        "updates_s": len(measured) / (watch.ended - watch.began),
        "of": sum(1 / pause_s(index) for index in range(workers)),
        "wait_ms": 1000 * median(waits.values()),
        "worst": max(waits.values()) / median(waits.values()),
        "staleness": f"{mean(staleness):.1f} / {np.percentile(staleness, 99):.0f}",
        "queue": f"{mean(depths):.1f} / {max(depths)}",
        "aggregator": f"{watch.peak_mb['aggregator']:.0f} MB, {watch.cores['aggregator']:.2f} cores",
        "lost": f"{len(balance.lost)} of {len(balance.sent)}",
        "lost_updates": len(balance.lost),
        "rejected": len(balance.rejected),
        "mean_staleness": mean(staleness),
        **{f"{role}_cores": cores for role, cores in watch.cores.items()},
        **{f"{role}_mb": peak for role, peak in watch.peak_mb.items()},
        "at_s_values": [round(second - watch.began, 2) for second in watch.seconds],
        "depth_values": depths,
        "mean_staleness_values": [mean(each) if each else float("nan") for each in slices],
        "worst_staleness_values": [max(each) if each else float("nan") for each in slices],
    }


def pause_s(index: int) -> float:
    """Return how long a worker pauses in each round, as fleet_workers draws it."""
    return float(np.random.default_rng(index).uniform(*PAUSES_S))


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="fleet", description="Measure what grows with the workers.")
    parser.add_argument("--workers", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=MEASURED_S, help="measured after a warm-up")
    arguments = parser.parse_args()
    console = wide_console()
    report = Report("fleet", "fleet: many light workers on one aggregator", shown=SHOWN)
    for workers in arguments.workers:
        measure(workers, arguments.seconds, report, console)
    report.show(console)
    broken = [
        f"{each['workers']} workers: {each['lost']} lost, longest wait {each['worst']:.1f} x the median"
        for each in report.rows
        if each["lost_updates"] or float(str(each["worst"])) > FAIR
    ]
    if broken:
        raise SystemExit("\n".join(broken))


def measure(workers: int, duration_s: float, report: Report, console: Console) -> None:
    """Measure one size on a private RabbitMQ of its own."""
    with (
        private_broker(report) as (folder, node),
        console.status(f"fleet of {workers}"),
        Federation("fleet", node.amqp_url, folder) as federation,
        federation.connect() as broker,
    ):
        write_model(folder / "initial.safetensors", small_networks.digits.initial_weights(0))
        # Its log then says when each update was folded.
        flags = ("--initial-model", "initial.safetensors", *FEDBUFF, "--verbose")
        aggregator = federation.aggregator("aggregator", *flags)
        aggregator.wait_for("leading")
        with fleet(federation, workers) as processes:
            watch = Watch(
                {
                    "aggregator": [aggregator.process.pid],
                    "workers": [process.pid for process in processes],
                    "broker": [node.pid],
                }
            )
            wait_until(
                lambda: len(federation.newest().contributors) == workers,
                "everybody's first update",
                every_s=1,
            )
            time.sleep(WARM_UP_S)
            others = OtherWork()
            watch.look_for(duration_s)
            others_share = others.share
        report.add(row(workers, watch, balance(federation, broker, aggregator)), others=others_share)


@contextmanager
def fleet(federation: Federation, workers: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run so many workers; at the end they write their ledgers."""
    environment = os.environ | {"FLUFFLE_BROKER_URL": federation.broker_url, "OMP_NUM_THREADS": "1"}
    said = ["--federation", federation.name, "--folder", str(federation.folder)]
    said += ["--pauses", *map(str, PAUSES_S)]
    edges = np.linspace(0, workers, PROCESSES + 1).astype(int).tolist()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fleet_workers", str(first), str(end - first), *said],
            env=environment,
        )
        for first, end in pairwise(edges)
    ]
    try:
        yield processes
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            if process.wait(300):
                raise RuntimeError(f"workers ended with {process.returncode}")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def balance(federation: Federation, broker: RabbitBroker, aggregator: Part) -> Balance:
    """Let the aggregator take what waits, end it, and read what became of every update."""
    topology = federation.topology
    wait_until(lambda: broker.state(topology.updates.name).messages == 0, "the rest to be taken")
    # A buffer that is not full stays with the aggregator, unacked, and goes back when that ends.
    aggregator.ask_to_stop()
    aggregator.wait_for_exit()
    sent: dict[str, Sent] = {}
    for path in sorted(federation.folder.glob("ledger-*.jsonl")):
        for line in path.read_text().splitlines():
            update, *times = json.loads(line)
            sent[update] = Sent(*times)
    return Balance(
        sent=sent,
        folded_at={
            str(event["update"]): datetime.fromisoformat(str(event["time"])).timestamp()
            for event in aggregator.events("update folded")
        },
        applied=[
            (one, version.committed_at)
            for version in (stored.version for stored in all_stored(broker, topology))
            for one in version.folded
        ],
        rejected={str(each) for each in federation.waiting_in(topology.rejected.name)},
        queued={str(each) for each in federation.waiting_in(topology.updates.name)},
    )


if __name__ == "__main__":
    main()
