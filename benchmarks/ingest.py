"""How many updates a second the whole path takes in, beside pika alone on the same queues.

    python -m benchmarks.ingest

Client processes publish real updates, and wait for each confirm. A real aggregator decodes, admits, folds,
commits durably and acks. The time goes from the first publish until the last update is acked. In turns with
that, the floor: the same messages by plain pika, and an aggregator that only acks and republishes a body of
the model's size at the same commit_schedule, on queues with the same arguments.

`n` updates make a turn, and `ratio` is that of all turns together. `cpu_ms` are the CPU milliseconds of an
update in aggregator, clients and broker; `cpu_ratio` is the floor's sum of them over the product's, which
other work on the machine hardly moves.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from rich.console import Console

from benchmarks.bandwidth import bandwidths
from benchmarks.measuring import Cell, Report, Spread, in_turns, wide_console
from benchmarks.sides import ProductSide, floor_side, private_broker, product_side
from fluffle_cli.node import BrokerNode
from harness.strategy_flags import strategy_flags

BUFFER_SIZE = 10
SIZES_MB = (0.1, 1.0, 10.0, 100.0)
CODECS = ("bfloat16", "int8", "topk", "float32+zstd", "bfloat16+zstd", "int8+zstd", "topk+zstd")
CODEC_SIZE_MB = 10.0
SHOWN = (
    "size_mb", "clients", "strategy", "codec", "updates_s", "floor_updates_s", "ratio", "cpu_ms",
    "floor_cpu_ms", "cpu_ratio",
)  # fmt: skip


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
        return BUFFER_SIZE if "--buffer-size" in strategy_flags(self.strategy, BUFFER_SIZE) else 1

    def updates(self, effort: float) -> int:
        """Return how many updates make a turn of a second or more, in whole commits."""
        wanted = effort * min(600.0, 300.0 / self.size_mb if self.size_mb >= 1 else 300.0 / self.size_mb**0.5)
        least = self.every if self.size_mb < 100 or self.every > 1 else 4
        return max(least, round(wanted / self.every) * self.every)


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each side is measured, and how many updates a turn has against the usual."""

    repeats: int = 4
    factor: float = 1.0


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="ingest", description="Measure updates a second beside pika's.")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_MB, help="MB of float32")
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 4), help="client processes")
    parser.add_argument("--strategies", nargs="+", default=("fedbuff", "fedasync"))
    parser.add_argument("--codecs", nargs="*", default=CODECS, help=f"of {CODEC_SIZE_MB:g} MB, FedBuff")
    parser.add_argument("--repeats", type=int, default=4, help="turns that count (default: 4)")
    parser.add_argument("--effort", type=float, default=1.0, help="factor on the updates of a turn")
    arguments = parser.parse_args()
    plain = product(arguments.sizes, arguments.clients, arguments.strategies, ("float32",))
    coded = product((CODEC_SIZE_MB,), (max(arguments.clients),), ("fedbuff",), arguments.codecs)
    cases = [Case(*each) for each in (*plain, *coded)]
    console = wide_console()
    report = Report(
        "ingest", "ingest: the whole path beside an aggregator that only acks and republishes", shown=SHOWN
    )
    measure_all(cases, report, console, Effort(arguments.repeats, arguments.effort))
    report.show(console)


def measure_all(cases: Sequence[Case], report: Report, console: Console, effort: Effort) -> None:
    """Measure one case after the other on one private RabbitMQ."""
    with private_broker(report) as (folder, node), console.status("") as status:
        for number, case in enumerate(cases):
            status.update(f"ingest {number + 1} of {len(cases)}: {case}")
            with report.row() as row:
                row.update(beside_the_floor(case, folder / f"ingest-{number}", node, effort))


def float32_to_int8(case: Case, folder: Path, node: BrokerNode, effort: Effort) -> float:
    """Return how many times more updates a second the whole path takes in with int8."""
    updates = case.updates(effort.factor)
    with (
        _product_side(case, folder, node) as plain,
        _product_side(replace(case, codec="int8"), folder.with_name(f"{folder.name}-int8"), node) as small,
    ):
        turns = in_turns(
            {"float32": lambda: plain.take_in(updates), "int8": lambda: small.take_in(updates)},
            effort.repeats,
        )
    return turns["float32"].total / turns["int8"].total


def _product_side(case: Case, folder: Path, node: BrokerNode) -> AbstractContextManager[ProductSide]:
    flags = (*strategy_flags(case.strategy, BUFFER_SIZE), "--codec", case.codec)
    return product_side(folder, node, case.clients, round(case.size_mb * 1e6 / 4), flags)


def beside_the_floor(
    case: Case, folder: Path, node: BrokerNode, effort: Effort
) -> Mapping[str, Cell | Spread]:
    """Measure product and floor in turns, and return the row."""
    updates = case.updates(effort.factor)
    with (
        _product_side(case, folder, node) as real,
        floor_side(f"{folder.name}-floor", node, case.clients, real.base, case.every) as floor,
    ):
        turns = in_turns(
            {"product": lambda: real.take_in(updates), "floor": lambda: floor.take_in(updates)},
            effort.repeats,
        )
        real.require_all_applied()
    rates = {side: spread.rates(updates) for side, spread in turns.items()}
    return {
        "size_mb": case.size_mb,
        "clients": case.clients,
        "strategy": case.strategy,
        "codec": case.codec,
        "n": updates,
        "updates_s": rates["product"],
        "floor_updates_s": rates["floor"],
        "ratio": turns["floor"].total / turns["product"].total,
        "float32_mb_s": rates["product"].times(case.size_mb).median,
        "memory_copy_mb_s": bandwidths(real.base.parameters, effort.repeats)["copy"].times(1e-6).median,
        "cpu_ms": real.cpu.by_role(1000 / updates),
        "floor_cpu_ms": floor.cpu.by_role(1000 / updates),
        "cpu_ratio": floor.cpu.whole / real.cpu.whole,
    }


if __name__ == "__main__":
    main()
