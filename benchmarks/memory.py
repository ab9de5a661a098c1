"""The peak resident memory of the leader, of a standby that takes over, and of a worker, by the model's size.

    python -m benchmarks.memory
    python -m benchmarks.memory --strategy reuse --sizes 10 100

Two real workers with a task that takes next to no memory itself, and K = 10. When the leader has
made a version it is killed, and the standby makes the next one. The peak is the kernel's (VmHWM). `base` is
what each takes with a model of next to nothing; the figures in `models` are what is above that.
"""

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from benchmarks import light_task
from benchmarks.floor import delete
from benchmarks.measuring import Cell, Report, peak_mb, random_floats, wide_console
from benchmarks.sides import private_broker
from fluffle.safetensors_file import write_model
from fluffle.topology import topology_of
from harness.federation import Federation, Part
from harness.strategy_flags import strategy_flags

SIZES_MB = (1.0, 10.0, 100.0, 400.0)
BASE_MB = 0.01
STRATEGY = "fedbuff"
BUFFER_SIZE = 10
WORKERS = 2
TAKEOVER_S = 120.0
# What an aggregator may take at most with a model of 100 MB (bench-quick): this and four times the model.
ALLOWED_MB, ALLOWED_MODELS = 100, 4
SHOWN = (
    "size_mb", "aggregator_mb", "aggregator_models", "standby_mb", "standby_models",
    "worker_mb", "worker_models",
)  # fmt: skip


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="memory", description="Measure peak memory by the model's size.")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_MB, help="MB of float32")
    parser.add_argument("--codec", default="float32")
    parser.add_argument("--strategy", default=STRATEGY, help=f"default: {STRATEGY}")
    parser.add_argument("--buffer-size", type=int, default=BUFFER_SIZE, help=f"default: {BUFFER_SIZE}")
    arguments = parser.parse_args()
    strategy, buffer_size, codec = arguments.strategy, arguments.buffer_size, arguments.codec
    report = Report(
        "memory" if strategy == STRATEGY else f"memory-{strategy}",
        f"memory: peak MB, {strategy}, K={buffer_size}, {codec}",
        shown=SHOWN,
    )
    console = wide_console()
    flags = (*strategy_flags(strategy, buffer_size), "--codec", codec)
    measure(arguments.sizes, report, console, flags)
    report.show(console)


def measure(sizes_mb: Sequence[float], report: Report, console: Console, flags: Sequence[str]) -> None:
    """Take a row for each size into the report, after one with a model of next to nothing."""
    with private_broker(report) as (folder, node), console.status("") as status:
        base = _peaks(BASE_MB, folder / "memory-base", node.amqp_url, flags)
        for number, size_mb in enumerate(sizes_mb):
            status.update(f"memory: {size_mb:g} MB")
            with report.row() as row:
                peaks = _peaks(size_mb, folder / f"memory-{number}", node.amqp_url, flags)
                row.update(_row(size_mb, base, peaks))


def _row(size_mb: float, base: Mapping[str, float], peaks: Mapping[str, float]) -> Mapping[str, Cell]:
    row: dict[str, Cell] = {"size_mb": size_mb}
    for part, peak in peaks.items():
        # A standby that did not take over has no peak.
        row[f"{part}_mb"] = round(peak) or "-"
        row[f"{part}_base_mb"] = round(base[part])
        row[f"{part}_models"] = round((peak - base[part]) / size_mb, 2) if peak else "-"
    return row


def aggregator_peak_mb(size_mb: float, place: Path, url: str, flags: Sequence[str]) -> float:
    """Return the peak of an aggregator that has made a version of a model of so many MB."""
    with _leader(size_mb, place, url, flags) as (federation, leader):
        for site in range(WORKERS):
            federation.worker(site, sites=WORKERS)
        leader.wait_for("version committed")
        return peak_mb(leader.process.pid)


def _peaks(size_mb: float, place: Path, url: str, flags: Sequence[str]) -> Mapping[str, float]:
    with _leader(size_mb, place, url, flags) as (federation, leader):
        standby = federation.aggregator("standby", "--initial-model", "initial.safetensors", *flags)
        standby.wait_for("standing by")
        workers = [federation.worker(site, sites=WORKERS) for site in range(WORKERS)]
        leader.wait_for("version committed")
        peaks = {"aggregator": peak_mb(leader.process.pid)}
        leader.kill()
        peaks["standby"] = peak_mb(standby.process.pid) if _commits(standby) else 0.0
        peaks["worker"] = max(peak_mb(worker.process.pid) for worker in workers)
    return peaks


@contextmanager
def _leader(size_mb: float, place: Path, url: str, flags: Sequence[str]) -> Iterator[tuple[Federation, Part]]:
    """Start a federation with a random model, and its aggregator."""
    place.mkdir()
    parameters = round(size_mb * 1e6 / 4)
    write_model(place / "initial.safetensors", {"kernel": random_floats(parameters)})
    os.environ[light_task.PARAMETERS_VARIABLE] = str(parameters)
    with Federation(place.name, url, place, task="benchmarks.light_task:task") as federation:
        leader = federation.aggregator("leader", "--initial-model", "initial.safetensors", *flags)
        leader.wait_for("leading")
        yield federation, leader
    delete(url, topology_of(place.name))
    shutil.rmtree(place)


def _commits(standby: Part) -> bool:
    """Tell whether it takes over and makes a version, within what is more than enough."""
    deadline = time.monotonic() + TAKEOVER_S
    while time.monotonic() < deadline:
        if standby.events("version committed"):
            return True
        time.sleep(0.1)
    return False


if __name__ == "__main__":
    main()
