"""The largest models through the whole path: two workers train 400 MB of float32.

    python -m benchmarks.large

Real processes, FedBuff with K = 2, until so many versions are made; then the workers are asked to stop, what
waits is taken in, and the ledger is balanced: every update that a worker knows to be confirmed is in the
model, or the benchmark fails. `minutes` are from the start of the workers to that. Peaks are the kernel's
(VmHWM), in MB; the broker's is beam's.
"""

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import light_task
from benchmarks.floor import delete
from benchmarks.measuring import Cell, Report, peak_mb, random_floats, reset_peak, wide_console
from benchmarks.sides import private_broker
from fluffle.safetensors_file import write_model
from fluffle.topology import topology_of
from fluffle_cli.node import BrokerNode
from harness.federation import Federation, Part, applied_ids, wait_until

SIZE_MB = 400.0
WORKERS = 2
VERSIONS = 3
# The codec of the updates, and that of the versions.
WAYS = ("float32:float32", "int8:float32", "int8:int8")
# As it is by default: tests have a shorter one.
HEARTBEAT = ("--heartbeat-s", "20")
# A model of this size is some seconds on its way on two busy cores.
DEADLINE_S = 1800.0


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="large", description="Train the largest models.")
    parser.add_argument("--sizes", type=float, nargs="+", default=[SIZE_MB], help="MB of float32")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="CODEC:DOWNLINK_CODEC")
    parser.add_argument("--versions", type=int, default=VERSIONS)
    arguments = parser.parse_args()
    report = Report(
        "large", f"large: {WORKERS} workers, FedBuff K=2, {arguments.versions} versions and what waits"
    )
    console = wide_console()
    measure(arguments.sizes, arguments.ways, report, console, versions=arguments.versions)
    report.show(console)


def measure(
    sizes_mb: Sequence[float], ways: Sequence[str], report: Report, console: Console, *, versions: int
) -> None:
    """Take a row for each size and way into the report."""
    with private_broker(report) as (folder, node), console.status("") as status:
        for number, (size_mb, way) in enumerate((size, way) for size in sizes_mb for way in ways):
            status.update(f"large: {size_mb:g} MB, {way}")
            with report.row() as row:
                row.update(_run(size_mb, way, folder / f"large-{number}", node, versions))


def _run(size_mb: float, way: str, place: Path, node: BrokerNode, versions: int) -> dict[str, Cell]:
    codec, _, downlink = way.partition(":")
    place.mkdir()
    parameters = round(size_mb * 1e6 / 4)
    write_model(place / "initial.safetensors", {"kernel": random_floats(parameters)})
    os.environ[light_task.PARAMETERS_VARIABLE] = str(parameters)
    reset_peak(node.pid)
    with Federation(place.name, node.amqp_url, place, task="benchmarks.light_task:task") as federation:
        leader = federation.aggregator(
            *(
                "leader",
                "--initial-model",
                "initial.safetensors",
                "--strategy",
                "fedbuff",
                "--buffer-size",
                "2",
            ),
            *("--codec", codec, "--downlink-codec", downlink, "--buffer-timeout", "10", *HEARTBEAT),
        )
        leader.wait_for("leading")
        began = time.monotonic()
        workers = [federation.worker(site, *HEARTBEAT, sites=WORKERS) for site in range(WORKERS)]
        wait_until(
            lambda: len(leader.events("version committed")) >= versions,
            f"{versions} versions",
            deadline_s=DEADLINE_S,
        )
        made_s = time.monotonic() - began
        worker_mb = max(peak_mb(worker.process.pid) for worker in workers)
        for worker in workers:
            worker.ask_to_stop()
        codes = [worker.wait_for_exit() for worker in workers]
        confirmed = federation.confirmed()
        # What does not fill a buffer is taken in when its time is over.
        wait_until(lambda: _taken_in(leader) >= len(confirmed), "all to be taken in", deadline_s=DEADLINE_S)
        aggregator_mb = peak_mb(leader.process.pid)
        leader.ask_to_stop()
        codes.append(leader.wait_for_exit())
        balanced_s = time.monotonic() - began
        applied = applied_ids(federation.newest())
    # What a worker was sending when it was asked to stop may be there too, though it has not heard of that.
    if any(codes) or not confirmed <= applied:
        raise RuntimeError(f"exit codes {codes}, confirmed {len(confirmed)}, applied {len(applied)}")
    found: dict[str, Cell] = {
        "size_mb": size_mb,
        "codec": codec,
        "downlink": downlink,
        "versions": versions,
        "seconds_a_version": round(made_s / versions, 1),
        "minutes": round(balanced_s / 60, 1),
        "confirmed": len(confirmed),
        "applied": len(applied),
        # Whoever loses the connection starts again from the head, which takes a model more.
        "connections_lost": len(leader.events("lost the broker; connecting again")),
        "aggregator_mb": round(aggregator_mb),
        "worker_mb": round(worker_mb),
        "broker_mb": round(peak_mb(node.pid)),
    }
    delete(node.amqp_url, topology_of(place.name))
    shutil.rmtree(place)
    return found


def _taken_in(leader: Part) -> int:
    """Return how many updates are in the versions that it has committed."""
    return sum(int(str(line["updates"])) for line in leader.events("version committed"))


if __name__ == "__main__":
    main()
