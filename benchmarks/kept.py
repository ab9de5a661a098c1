"""How many updates a second strategies that keep updates take in, beside FedBuff with the same K.

    python -m benchmarks.kept

Real aggregators, one for each strategy, take in updates in turns, as in benchmarks/ingest.py, from one client
process for each worker. All have K updates in a step (`buffer_size`) and publish every so many steps
(`commit_every`): `reuse` has both 1 by default. `ratio` is FedBuff's time for all turns together over the
strategy's, and `cpu_ratio` the same of the CPU time of aggregator, clients and broker (`cpu_ms`, of an
update).
`version_mb` is what a version publishes into the head queue, and `aggregator_mb` the peak of the aggregator's
resident memory.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.measuring import Cell, OtherWork, Report, Spread, in_turns, peak_mb, wide_console
from benchmarks.sides import private_broker, product_side
from fluffle.record_wire import decode_record
from fluffle_cli.node import BrokerNode
from harness.federation import Federation
from harness.strategy_flags import strategy_flags

BASELINE = "fedbuff"
STRATEGIES = (BASELINE, "reuse", "ca2fl", "ace")
# The updates in a step, and the steps in a commit.
CASES = ((1, 1), (1, 4), (4, 1))


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="kept", description="Measure strategies that keep updates.")
    parser.add_argument("--size", type=float, default=10.0, help="MB of float32 (default: 10)")
    parser.add_argument("--clients", type=int, default=4, help="workers (default: 4)")
    parser.add_argument("--codec", default="float32", help="of the updates (default: float32)")
    parser.add_argument("--updates", type=int, default=20, help="of a turn (default: 20)")
    parser.add_argument("--repeats", type=int, default=6, help="turns that count (default: 6)")
    given = parser.parse_args()
    console = wide_console()
    report = Report("kept", f"strategies that keep updates: {given.size:g} MB, {given.clients} workers")
    with private_broker(report) as (folder, node):
        for buffer_size, commit_every in CASES:
            others, place = OtherWork(), folder / f"kept-{buffer_size}-{commit_every}"
            with console.status(f"K = {buffer_size}, a version after every {commit_every} steps"):
                for row in beside_fedbuff(given, buffer_size, commit_every, place, node):
                    report.add(row, others=others.share)
    report.show(console)


def beside_fedbuff(
    given: argparse.Namespace, buffer_size: int, commit_every: int, place: Path, node: BrokerNode
) -> Iterator[Mapping[str, Cell | Spread]]:
    """Measure all strategies in turns, and yield the row of each."""
    settings = ("--commit-every", str(commit_every), "--codec", given.codec)
    parameters = round(given.size * 1e6 / 4)
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(
                product_side(
                    place.with_name(f"{place.name}-{name}"),
                    node,
                    given.clients,
                    parameters,
                    (*strategy_flags(name, buffer_size), *settings),
                )
            )
            for name in STRATEGIES
        }
        measures = {name: partial(side.take_in, given.updates) for name, side in sides.items()}
        turns = in_turns(measures, given.repeats)
        for name, side in sides.items():
            side.require_all_applied()
            yield {
                "buffer_size": buffer_size,
                "commit_every": commit_every,
                "strategy": name,
                "codec": given.codec,
                "updates_s": turns[name].rates(given.updates),
                "ratio": turns[BASELINE].total / turns[name].total,
                "cpu_ratio": sides[BASELINE].cpu.whole / side.cpu.whole,
                "cpu_ms": side.cpu.by_role(1000 / given.updates),
                "version_mb": round(published_mb(side.federation), 1),
                "aggregator_mb": round(peak_mb(side.aggregator.pid)),
            }


def published_mb(federation: Federation) -> float:
    """Return the MB of the newest version's messages in the head queue."""
    with federation.connect() as broker, broker.peek(federation.topology.head.name) as bodies:
        sizes = [(decode_record(body).rank, len(body)) for body in bodies]
    newest, _ = max(sizes)
    return sum(size for rank, size in sizes if rank == newest) / 1e6


if __name__ == "__main__":
    main()
