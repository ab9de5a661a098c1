"""What differential privacy costs the aggregator: updates a second with `--dp central` and without it.

    python -m benchmarks.private

Two real aggregators on one RabbitMQ take in the same updates in turns, one of them with `--dp central`. This
process publishes them in the names of as many workers as the separation needs, and waits for each confirm.
The time goes from the first publish until the last update is acked, so the noise of each sum is in it.
`ratio` is the plain side's time over the private side's: to reach, 0.87 with 10 MB of float32 (2.5 million
parameters), which is an overhead of 15 %. `cpu_ms` are the CPU milliseconds of an update in the aggregator.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.floor import delete
from benchmarks.many_workers import ManyWorkers, measure_each
from benchmarks.measuring import Cell, Report, Spread, cpu_s, in_turns, random_floats
from fluffle.privacy.secret_file import write_new_secret
from fluffle.safetensors_file import write_model
from fluffle_cli.node import BrokerNode
from harness.federation import Federation

BUFFER_SIZE = 10
UPDATES = 8
NOISE_FILE = "noise.secret"
SHOWN = (
    *("parameters", "separation", "bands", "n", "updates_s", "plain_updates_s", "ratio"),
    *("cpu_ms", "plain_cpu_ms"),
)


def main() -> None:
    """Measure, write and print."""
    measure_each(
        measured,
        Report("private", "private: updates with --dp central beside those without", shown=SHOWN),
        about="Measure what differential privacy costs.",
        parameters=(250_000, 2_500_000),
        choices=("separations", (1, 10)),
        repeats=6,
    )


@contextmanager
def a_side(
    place: Path, node: BrokerNode, parameters: int, *flags: str, workers: int
) -> Iterator[ManyWorkers]:
    """Start an aggregator whose model has so many parameters."""
    place.mkdir()
    write_model(place / "initial.safetensors", {"kernel": random_floats(parameters)})
    write_new_secret(place / NOISE_FILE)
    with Federation(place.name, node.amqp_url, place) as federation:
        common = ("--strategy", "fedbuff", "--buffer-size", str(BUFFER_SIZE), "--weigh-by", "none")
        part = federation.aggregator("aggregator", "--initial-model", "initial.safetensors", *common, *flags)
        part.wait_for("leading")
        names = [f"site-{number}" for number in range(workers)]
        yield ManyWorkers(federation, part, federation.newest(), names)
    delete(node.amqp_url, federation.topology)


def measured(
    place: Path, node: BrokerNode, parameters: int, separation: int, *, updates: int, repeats: int
) -> Mapping[str, Cell | Spread]:
    """Measure both sides in turns, and return the row."""
    # The turn that warms up, and those that make the turns even in number.
    workers = max(
        BUFFER_SIZE * separation, -(-updates * (repeats + 2) // UPDATES // BUFFER_SIZE) * BUFFER_SIZE
    )
    privately = (
        *("--dp", "central", "--dp-epsilon", "8", "--dp-clip", "1", "--dp-secret", NOISE_FILE),
        *("--dp-max-updates", str(UPDATES), "--dp-separation", str(separation)),
    )
    with (
        a_side(place, node, parameters, *privately, workers=workers) as private,
        a_side(place.with_name(f"{place.name}-plain"), node, parameters, workers=workers) as plain,
    ):
        cpu: dict[str, list[float]] = {"private": [], "plain": []}

        def take_in(name: str, side: ManyWorkers) -> float:
            before = cpu_s([side.aggregator.pid])
            took_s = side.take_in(updates)
            cpu[name].append(1000 * (cpu_s([side.aggregator.pid]) - before) / updates)
            return took_s

        turns = in_turns(
            {"private": lambda: take_in("private", private), "plain": lambda: take_in("plain", plain)},
            repeats,
        )
        for side in (private, plain):
            side.require_all_applied()
        promised = private.version.plan.privacy
    return {
        "parameters": parameters,
        "separation": separation,
        "bands": promised.bands if promised else 0,
        "n": updates,
        "updates_s": turns["private"].rates(updates),
        "plain_updates_s": turns["plain"].rates(updates),
        "ratio": turns["plain"].total / turns["private"].total,
        "cpu_ms": Spread(tuple(cpu["private"][1:])),
        "plain_cpu_ms": Spread(tuple(cpu["plain"][1:])),
    }


if __name__ == "__main__":
    main()
