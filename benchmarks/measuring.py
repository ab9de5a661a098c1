"""How every benchmark here measures: repeats, the machine, who else was at work, JSON lines and tables.

What is compared is measured in turns, so that a machine that slows down slows both sides. The first turn is
left out. A figure is the median of the others, and its line of JSON keeps every one of them; a ratio of two
sides that RabbitMQ serves is that of all turns together.
"""

import argparse
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median, stdev
from typing import TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fluffle.consoles import PlainConsole
from fluffle_cli.over_seeds import Speedup, median_speedup, worst_speedup
from harness.process_memory import memory_bytes

RESULTS = Path(__file__).parent / "results"
# Beside the benchmarks' own processes, more of the CPU than this makes a figure doubtful.
BUSY_SHARE = 0.1

Case = TypeVar("Case", bound=Hashable)
Outcome = TypeVar("Outcome")
Cell = str | int | float | Sequence[float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure."""
        return median(self.values)

    @property
    def total(self) -> float:
        """All turns together: what RabbitMQ does in some of them only, such as tidying up, has its share."""
        return sum(self.values)

    def times(self, factor: float) -> "Spread":
        """Return the same in another unit."""
        return Spread(tuple(value * factor for value in self.values))

    def rates(self, count: float) -> "Spread":
        """Take the values for seconds, and return how many of `count` things that is a second."""
        return Spread(tuple(count / value for value in self.values))

    def over(self, other: "Spread") -> "Spread":
        """Return the ratios turn by turn: both sides of a turn had the same machine."""
        return Spread(tuple(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(min(self.values))} to {short(max(self.values))})"


def wide_console() -> Console:
    """Return a console on which a table has room, even where there is no terminal."""
    console = PlainConsole()
    return console if console.is_terminal else PlainConsole(width=160)


def in_turns(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Spread]:
    """Measure each in turn, at least `repeats` times after one turn that warms up and does not count.

    Every other turn goes backwards, since what one leaves for the broker to tidy up slows the next. The turns
    are even in number: of two sides, none goes first more often.
    """
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(repeats + repeats % 2 + 1):
        for name, measure in sorted(measures.items(), reverse=turn % 2 == 1):
            value = measure()
            if turn:
                found[name].append(value)
    return {name: Spread(tuple(values)) for name, values in found.items()}


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def in_processes(
    play: Callable[[Case], Outcome], cases: Sequence[Case], processes: int
) -> dict[Case, Outcome]:
    """Play each case in one of so many new processes, and return what came out, with a progress bar."""
    # Processes are renewed, since a framework keeps some memory of each model that it has compiled.
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=20) as pool:
        outcomes = track(pool.map(play, cases), "runs", total=len(cases), console=wide_console())
        return dict(zip(cases, outcomes, strict=True))


def spread_of(values: Sequence[float]) -> float:
    """Return the standard deviation over the seeds; of one seed it is 0."""
    return stdev(values) if len(values) > 1 else 0.0


def compare_over_seeds(
    report: "Report",
    settings: Sequence[Mapping[str, Cell]],
    case: Callable[..., Case],
    play: Callable[[Case], Outcome],
    row: Callable[[Sequence[Outcome]], Mapping[str, Cell]],
    *,
    seeds: int = 3,
    arguments: Sequence[str] | None = None,
) -> None:
    """Play each setting with each seed, and print a row for each setting.

    A case is made of a setting and `seed`, as arguments by name. `row` makes cells of a setting's outcomes.
    """
    parser = argparse.ArgumentParser(prog=report.benchmark, description=report.title)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    console, others = wide_console(), OtherWork()
    cases = [[case(**setting, seed=seed) for seed in range(given.seeds)] for setting in settings]
    outcomes = in_processes(play, [each for of_setting in cases for each in of_setting], given.processes)
    for setting, of_setting in zip(settings, cases, strict=True):
        cells = row([outcomes[each] for each in of_setting])
        report.add({**setting, "seeds": given.seeds, **cells}, others=others.share)
    report.show(console)


def seconds_in_words(values: Sequence[float]) -> str:
    """Return the seconds of each seed; infinity stands for a target that never held."""
    return " ".join("never" if math.isinf(each) else f"{each:.4g}" for each in values)


def times_as_fast(seconds: Sequence[float], baseline_s: Sequence[float], watched_s: float) -> str:
    """Return how many times as fast as a baseline something is, seed by seed: the median and the worst.

    Where the baseline never held its target, it counts with the seconds for which it was watched.
    """
    found = [
        Speedup.of(mine, baseline_s=theirs, watched_s=watched_s)
        for mine, theirs in zip(seconds, baseline_s, strict=True)
    ]
    return f"{median_speedup(found)}, worst {worst_speedup(found)}"


def random_floats(size: int, seed: int = 0) -> NDArray[np.float32]:
    """Return a vector like a delta: normal and small. Zeros would do memory and codecs a favour."""
    return np.random.default_rng(seed).standard_normal(size, np.float32) * np.float32(0.01)


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds that processes have had so far, and their children that have ended."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        # With those of its children that have ended.
        total += times.user + times.system + times.children_user + times.children_system
    return total


@cache
def machine() -> Mapping[str, Cell]:
    """Describe what the figures were measured on."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pika": version("pika"),
    }


def peak_mb(pid: int) -> float:
    """Return the peak resident memory of a process, in MB, as the kernel counts it."""
    peak_bytes = memory_bytes(pid, "VmHWM")
    if not peak_bytes:
        raise RuntimeError(f"the process {pid} has ended")
    return peak_bytes / 1e6


def reset_peak(pid: int) -> None:
    """Let the kernel count the peak of a process anew, from what it has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class OtherWork:
    """The share of this machine's CPU that others took while something was measured."""

    def __init__(self) -> None:
        self._busy_s, self._all_s = _machine_cpu_s()
        self._own_s = _own_cpu_s()

    @property
    def share(self) -> float:
        """The share since the beginning, from 0 to 1; a process of ours that is gone counts as others'."""
        busy_s, all_s = _machine_cpu_s()
        others_s = (busy_s - self._busy_s) - (_own_cpu_s() - self._own_s)
        return min(1.0, max(0.0, others_s / max(all_s - self._all_s, 1e-9)))


@dataclass
class Report:
    """The rows of one benchmark: printed as a table, and kept as lines of JSON in benchmarks/results.

    `rabbitmq` is the version of the broker that it ran on, empty for a benchmark without one. `shown` are the
    columns of the table, if it does not show all; a name that ends in _values is never shown.
    """

    benchmark: str
    title: str
    rows: list[Mapping[str, Cell]] = field(default_factory=list)
    rabbitmq: str = ""
    shown: Sequence[str] = ()
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def add(self, row: Mapping[str, Cell | Spread], *, others: float) -> None:
        """Take in a row; a Spread becomes its median, and all its values beside it under NAME_values."""
        cells: dict[str, Cell] = {}
        for name, cell in row.items():
            cells[name] = cell.median if isinstance(cell, Spread) else cell
            if isinstance(cell, Spread):
                cells[f"{name}_values"] = [round(value, 6) for value in cell.values]
        cells["others_cpu_share"] = round(others, 3)
        self.rows.append(cells)
        self._write(cells)

    @contextmanager
    def row(self) -> Iterator[dict[str, Cell | Spread]]:
        """Give a row to fill; when it is full, take it in with the share of CPU that others had meanwhile."""
        cells: dict[str, Cell | Spread] = {}
        other_work = OtherWork()
        yield cells
        self.add(cells, others=other_work.share)

    @property
    def columns(self) -> Sequence[str]:
        """The columns of the table."""
        return [*self.shown, "others_cpu_share"] if self.shown else columns_of(self.rows)

    def show(self, console: Console) -> None:
        """Print the table."""
        table = Table(title=self.title, title_justify="left")
        columns = self.columns
        for number, name in enumerate(columns):
            table.add_column(name.replace("_", " "), justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*(cell_text(row, name) for name in columns))
        console.print(table)

    def _write(self, row: Mapping[str, Cell]) -> None:
        RESULTS.mkdir(exist_ok=True)
        line = {"benchmark": self.benchmark, "title": self.title, "run": self.began}
        where = {**machine(), "rabbitmq": self.rabbitmq}
        with (RESULTS / f"{self.benchmark}.jsonl").open("a") as sink:
            sink.write(json.dumps({**line, "machine": where, "shown": self.columns, "row": row}) + "\n")


def columns_of(rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    """Return the columns that a table of these rows shows."""
    names = dict.fromkeys(name for row in rows for name in row if not name.endswith("_values"))
    return list(names)


def cell_text(row: Mapping[str, Cell], name: str) -> str:
    """Return what stands in one cell: a median with its least and greatest value, or what there is."""
    cell, values = row.get(name, ""), row.get(f"{name}_values")
    if name == "others_cpu_share" and isinstance(cell, float):
        return f"{cell:.0%}{' (busy)' if cell > BUSY_SHARE else ''}"
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 1:
        return str(Spread(tuple(values)))
    return short(cell) if isinstance(cell, float) else str(cell)


def short(number: float) -> str:
    """Three significant digits, and never an exponent."""
    magnitude = abs(number)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 0.1 else 4
    return f"{number:.{digits}f}"


def _machine_cpu_s() -> tuple[float, float]:
    times = psutil.cpu_times()
    # Guests are counted in user and nice already. What the host took away is work of others.
    whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return whole - times.idle - getattr(times, "iowait", 0.0), whole


def _own_cpu_s() -> float:
    here = psutil.Process()
    return cpu_s([here.pid, *(child.pid for child in here.children(recursive=True))])
