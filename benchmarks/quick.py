"""Measure the required ratios, in about 8 minutes; end with 1 when one falls short by more than 15 %.

    make bench-quick

FedAvg and FedBuff train on digits at the same time. When FedBuff has finished for the third time, the other
ratios are measured one after the other, while FedAvg, which mostly sleeps, goes on until it has taken four
times as long. Each of its rounds counts as 1.6 s, the sleep of its slowest client: a lower bound, which the
other measurements cannot lengthen.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.table import Table

from benchmarks.ingest import Case, Effort, beside_the_floor, float32_to_int8
from benchmarks.measuring import OtherWork, Report, short, wide_console
from benchmarks.memory import ALLOWED_MB, ALLOWED_MODELS, aggregator_peak_mb
from benchmarks.sides import private_broker
from benchmarks.stragglers import Place, racing
from benchmarks.verdicts import Verdict, exit_code
from benchmarks.watched import beside_the_unwatched
from fluffle_cli.node import BrokerNode

# FedAvg is not waited for longer than this; what was shown by then is what counts.
BUDGET_S = 130.0
SHORT, LONG = Effort(repeats=8, factor=0.5), Effort(repeats=8, factor=1.0)
# Of 2 %, 15 % more would be no demand.
WATCHED_TOLERANCE = 0.03
LARGE_MB = 100.0
SOONER = 4.0


def main() -> None:
    """Measure, write, print, and end with 1 when something falls short."""
    console, report, others = wide_console(), Report("quick", "quick"), OtherWork()
    until = time.monotonic() + BUDGET_S
    verdicts: list[Verdict] = []
    with (
        private_broker(report, management=True) as (folder, node),
        console.status("FedBuff against FedAvg") as status,
    ):
        with racing(Place(node, folder)) as race:
            for verdict in _in_the_meantime(folder, node):
                verdicts.append(verdict)
                status.update(f"{verdict.what}: {verdict.measured:.2f}")
            race.wait(SOONER, until=until)
            measured, bound = race.sooner, not race.is_over
        what = "95 % held, FedBuff against FedAvg"
        verdicts.append(Verdict(what, "at least", SOONER, measured, " times sooner", lower_bound=bound))
    table = Table(title=f"others had {others.share:.0%} of the CPU", title_justify="left")
    for column in ("what", "required", "measured", "verdict"):
        table.add_column(column, justify="right" if column in ("required", "measured") else "left")
    for each in verdicts:
        sign, about = ("≤ " if each.sense == "at most" else "≥ "), ("≥ " if each.lower_bound else "")
        required, found = (
            f"{sign}{short(each.required)}{each.unit}",
            f"{about}{short(each.measured)}{each.unit}",
        )
        table.add_row(each.what, required, found, str(each))
        report.add(
            {"what": each.what, "required": required, "measured": found, "verdict": str(each)},
            others=others.share,
        )
    console.print(table)
    raise SystemExit(exit_code(verdicts))


def _in_the_meantime(folder: Path, node: BrokerNode) -> Iterator[Verdict]:
    for size_mb, required in ((1.0, 0.9), (0.1, 0.75)):
        for clients in (1, 4):
            case = Case(size_mb, clients, "fedbuff", "float32")
            row = beside_the_floor(case, folder / f"ingest-{1000 * size_mb:.0f}-{clients}", node, SHORT)
            what = f"ingest of {size_mb:g} MB from {clients} against the acking-only floor"
            yield Verdict(what, "at least", required, _ratio(row))
    times = float32_to_int8(Case(10.0, 4, "fedbuff", "float32"), folder / "codecs", node, LONG)
    yield Verdict("updates of 10 MB a second, int8 against float32", "at least", 2.5, times, " times")
    row = beside_the_unwatched(Case(1.0, 4, "fedbuff", "float32"), folder / "watched", node, LONG)
    what = "ingest of 1 MB, looked at against not"
    yield Verdict(what, "at least", 0.98, _ratio(row), tolerance=WATCHED_TOLERANCE)
    peak_mb = aggregator_peak_mb(
        LARGE_MB, folder / "memory", node.amqp_url, ("--strategy", "fedbuff", "--buffer-size", "10")
    )
    allowed_mb = ALLOWED_MB + ALLOWED_MODELS * LARGE_MB
    yield Verdict(f"aggregator's peak memory at {LARGE_MB:g} MB", "at most", allowed_mb, peak_mb, " MB")


def _ratio(row: Mapping[str, object]) -> float:
    ratio = row["ratio"]
    if not isinstance(ratio, float):
        raise TypeError(f"expected one ratio, not {ratio!r}")
    return ratio


if __name__ == "__main__":
    main()
