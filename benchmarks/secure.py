"""What secure aggregation costs the aggregator: updates a second, and the wait for the helpers.

    python -m benchmarks.secure

Two real aggregators on one RabbitMQ take in the same number of updates in turns, one of them in float32 and
one masked, with three helpers as processes. This process publishes, in the names of as many workers as a
buffer has updates, and waits for each confirm; the masks are made beforehand. The time goes from the first
publish until the last update is acked. `ratio` is the float32 side's time over the masked side's: to reach,
0.8 with 10 MB of float32. Then single buffers follow, each after the one before is committed: `opening_ms` is
the time from the full buffer to its opened sum, and `commit_ms` that to the committed version: to reach, 100
with a million parameters. `flood_commit_ms` is the same while updates go on coming.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.floor import delete
from benchmarks.many_workers import VECTORS, ManyWorkers, measure_each
from benchmarks.measuring import Cell, Report, Spread, in_turns, random_floats
from fluffle.safetensors_file import write_model
from fluffle.secure.key_files import WorkerKey, read_operator, read_private
from fluffle.secure.masking import Masks, whole_numbers
from fluffle.secure.registry import read_registry
from fluffle.update import WeightUpdate
from fluffle_cli.demo.keys import HELPERS, Keys
from fluffle_cli.node import BrokerNode
from harness.federation import Federation, Part

BUFFER_SIZE = 10
WORKERS = tuple(f"site-{number}" for number in range(BUFFER_SIZE))
# Buffers that are filled one at a time.
ALONE = 15
SHOWN = (
    *("parameters", "modulus", "n", "updates_s", "float32_updates_s", "ratio"),
    *("opening_ms", "commit_ms", "flood_commit_ms"),
)


def main() -> None:
    """Measure, write and print."""
    measure_each(
        measured,
        Report("secure", "secure: masked updates beside float32, three helpers", shown=SHOWN),
        about="Measure what secure aggregation costs.",
        parameters=(1_000_000, 2_500_000),
        choices=("moduli", (16, 24, 32)),
        repeats=4,
    )


@dataclass
class Side(ManyWorkers):
    """An aggregator, and what is sent to it."""

    masks: Mapping[str, Masks] = field(kw_only=True)

    def __post_init__(self) -> None:
        """Draw the numbers that are masked."""
        super().__post_init__()
        secure, random = self.version.plan.secure, np.random.default_rng(0)
        self._numbers = (
            [whole_numbers(each, np.zeros(secure.measured_size), secure, random) for each in self.vectors]
            if secure
            else []
        )

    def update(self, number: int) -> WeightUpdate:
        """Return the update of this number, masked if this side masks."""
        plain, secure = super().update(number), self.version.plan.secure
        if secure is None:
            return plain
        return self.masks[plain.id.worker].masked(plain, self._numbers[number % VECTORS], secure)

    def waits_ms(self) -> tuple[list[float], list[float]]:
        """Return how long each sum took to be opened, and to be committed, in milliseconds."""
        opened = self.part.events("sum opened")
        committed = {each["version"]: each for each in self.part.events("version committed")}
        openings = [1000 * float(str(each["seconds"])) for each in opened]
        return openings, [
            wait + 1000 * (_unix(committed[each["version"]]) - _unix(each))
            for wait, each in zip(openings, opened, strict=True)
        ]


def _unix(line: Mapping[str, object]) -> float:
    return datetime.fromisoformat(str(line["time"])).timestamp()


@contextmanager
def a_side(place: Path, node: BrokerNode, parameters: int, modulus: int | None) -> Iterator[Side]:
    """Start an aggregator, and the helpers if there is a modulus."""
    place.mkdir()
    write_model(place / "initial.safetensors", {"kernel": random_floats(parameters)})
    flags = ["--strategy", "fedbuff", "--buffer-size", str(BUFFER_SIZE), "--weigh-by", "none"]
    with Federation(place.name, node.amqp_url, place) as federation:
        masks: dict[str, Masks] = {}
        helpers: list[Part] = []
        if modulus:
            keys = Keys(place / "keys")
            keys.make(federation.name, WORKERS)
            helpers = [
                federation.start(name, "fluffle_helper", *as_flags(keys.of_helper(name))) for name in HELPERS
            ]
            flags += ["--secure-aggregation", "--secure-modulus", str(modulus), *as_flags(keys.public)]
            text = (keys.folder / "registry.json").read_text()
            registry = read_registry(text, read_operator(keys.folder / "operator.pub"))
            masks = {
                name: Masks(
                    registry, read_private(keys.folder / "workers" / f"{name}.key", WorkerKey).private
                )
                for name in WORKERS
            }
        part = federation.aggregator("aggregator", "--initial-model", "initial.safetensors", *flags)
        part.wait_for("leading")
        for helper in helpers:
            helper.wait_for("reading the close records")
        yield Side(federation, part, federation.newest(), WORKERS, masks=masks)
    delete(node.amqp_url, federation.topology)


def as_flags(settings: Mapping[str, object]) -> Sequence[str]:
    """Return settings as flags."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def measured(
    place: Path, node: BrokerNode, parameters: int, modulus: int, *, updates: int, repeats: int
) -> Mapping[str, Cell | Spread]:
    """Measure both sides in turns, and return the row."""
    with (
        a_side(place, node, parameters, modulus) as secure,
        a_side(place.with_name(f"{place.name}-float32"), node, parameters, None) as plain,
    ):
        turns = in_turns(
            {"secure": lambda: secure.take_in(updates), "plain": lambda: plain.take_in(updates)}, repeats
        )
        for _ in range(ALONE):
            secure.take_in(BUFFER_SIZE)
        openings, commits = secure.waits_ms()
        secure.require_all_applied()
    return {
        "parameters": parameters,
        "modulus": modulus,
        "n": updates,
        "updates_s": turns["secure"].rates(updates),
        "float32_updates_s": turns["plain"].rates(updates),
        "ratio": turns["plain"].total / turns["secure"].total,
        "opening_ms": Spread(tuple(openings[-ALONE:])),
        "commit_ms": Spread(tuple(commits[-ALONE:])),
        "commit_ms_median": median(commits[-ALONE:]),
        # Not the first one, when nothing is warm yet.
        "flood_commit_ms": Spread(tuple(commits[1:-ALONE])),
    }


if __name__ == "__main__":
    main()
