"""What a sealed federation costs: bytes, the aggregator's time and memory, and the time to an accuracy.

    python -m benchmarks.sealed
    python -m benchmarks.sealed --only training --repeats 4

For the aggregator, two real ones on one RabbitMQ take in the same number of updates in turns, in float32 and
sealed. This process publishes, and waits for each confirm; the ciphertexts are random numbers, since nobody
decrypts them. `ratio` is the float32 side's time over the sealed side's, and `memory_mb` the sealed
aggregator's peak, all of its process.

For the training, federations of real workers and an evaluator run in turns, plain and sealed, seed by seed,
until an evaluation reaches the target. The time goes from the first update to that evaluation, as the last
record says. `ratio` is the sealed side's time over the plain side's, of all seeds together: to reach, 1.5.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.floor import delete
from benchmarks.many_workers import VECTORS, ManyWorkers
from benchmarks.measuring import Cell, Report, Spread, in_turns, peak_mb, random_floats, wide_console
from benchmarks.sides import private_broker
from fluffle.codecs.sealed import SealedVector
from fluffle.model import no_values
from fluffle.safetensors_file import write_model
from fluffle.sealed.parameters import PRIME
from fluffle.sealed.plan import SEALED
from fluffle.sealed.public_file import SealedPublic, write_public
from fluffle.sealed.residues import zeros
from fluffle.update import WeightUpdate
from fluffle.wire import encode_update
from fluffle_cli.making_sealed_key import PUBLIC, SECRET
from fluffle_cli.node import BrokerNode
from harness.federation import Federation

BUFFER_SIZE: Final = 4
WORKERS: Final = 2
KEY: Final = "0123456789abcdef" * 2
AGGREGATOR: Final = (
    *("parameters", "bytes_of_update", "bytes_of_version", "updates_s", "float32_updates_s", "ratio"),
    "memory_mb",
)
TRAINING: Final = ("task", "parameters", "target", "plain_s", "sealed_s", "ratio", "plain_n", "sealed_n")


@dataclass(frozen=True, slots=True)
class Scene:
    """What is trained, by workers of so many minibatches a round, and until when."""

    task: str
    target: str
    local_steps: int


SCENES: Final = (
    Scene("digits", "accuracy>=0.95", 15),
    Scene("benchmarks.sealed_task:task", "accuracy>=0.84", 50),
)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="sealed", description="Measure what a sealed federation costs.")
    parser.add_argument("--only", choices=("aggregator", "training"))
    parser.add_argument("--parameters", type=int, nargs="+", default=(100_352, 1_000_000))
    parser.add_argument("--updates", type=int, default=20, help="updates of a turn")
    parser.add_argument("--repeats", type=int, default=4, help="turns that count, and seeds")
    given = parser.parse_args()
    if given.only != "training":
        report = Report("sealed", "sealed: sealed updates beside float32", shown=AGGREGATOR)
        with private_broker(report) as (folder, node):
            for parameters in given.parameters:
                with report.row() as row:
                    place = folder / f"sealed-{parameters}"
                    row.update(taken_in(place, node, parameters, given.updates, given.repeats))
        report.show(wide_console())
    if given.only != "aggregator":
        report = Report("sealed-training", "sealed-training: seconds to the target", shown=TRAINING)
        with private_broker(report) as (folder, node):
            for number, scene in enumerate(SCENES):
                with report.row() as row:
                    row.update(trained(folder / f"training-{number}", node, scene, seeds=given.repeats))
        report.show(wide_console())


class Side(ManyWorkers):
    """An aggregator, and what is sent to it."""

    def __post_init__(self) -> None:
        """Draw the numbers of ciphertexts that nobody can decrypt."""
        super().__post_init__()
        size, random = self.version.layout.size, np.random.default_rng(0)
        self._sealed = [
            SealedVector.of(random.integers(0, PRIME, zeros(size).shape, np.uint64), size, no_values())
            for _ in range(VECTORS if self.version.plan.sealed else 0)
        ]

    def update(self, number: int) -> WeightUpdate:
        """Return the update of this number, sealed if this side seals."""
        plain = super().update(number)
        if not self._sealed:
            return plain
        return replace(plain, codec=SEALED, key=KEY, vector=self._sealed[number % VECTORS])


@contextmanager
def a_side(place: Path, node: BrokerNode, parameters: int, *flags: str) -> Iterator[Side]:
    """Start an aggregator for a model of random numbers."""
    place.mkdir()
    write_model(place / "initial.safetensors", {"kernel": random_floats(parameters)})
    write_public(place / PUBLIC, SealedPublic(KEY))
    how = ["--strategy", "fedbuff", "--buffer-size", str(BUFFER_SIZE), "--weigh-by", "none", *flags]
    with Federation(place.name, node.amqp_url, place) as federation:
        part = federation.aggregator("aggregator", "--initial-model", "initial.safetensors", *how)
        part.wait_for("leading")
        yield Side(federation, part, federation.newest(), [f"site-{n}" for n in range(BUFFER_SIZE)])
    delete(node.amqp_url, federation.topology)


def taken_in(
    place: Path, node: BrokerNode, parameters: int, updates: int, repeats: int
) -> Mapping[str, Cell | Spread]:
    """Measure both sides in turns, and return the row."""
    plain_place = place.with_name(f"{place.name}-float32")
    with (
        a_side(place, node, parameters, "--sealed", PUBLIC) as sealed,
        a_side(plain_place, node, parameters) as plain,
    ):
        turns = in_turns(
            {"sealed": lambda: sealed.take_in(updates), "plain": lambda: plain.take_in(updates)}, repeats
        )
        sealed.require_all_applied()
        memory_mb = peak_mb(sealed.part.process.pid)
        newest = sealed.federation.newest()
        update_bytes = len(encode_update(sealed.update(0)))
    return {
        "parameters": parameters,
        "bytes_of_update": round(update_bytes / parameters, 2),
        "bytes_of_version": round(newest.payload_size_bytes / parameters, 2),
        "updates_s": turns["sealed"].rates(updates),
        "float32_updates_s": turns["plain"].rates(updates),
        "ratio": turns["plain"].total / turns["sealed"].total,
        "memory_mb": round(memory_mb),
    }


def trained(place: Path, node: BrokerNode, scene: Scene, *, seeds: int) -> Mapping[str, Cell | Spread]:
    """Train until the target, plain and sealed in turns, and return the row."""
    found: dict[str, list[tuple[float, int]]] = {"plain": [], "sealed": []}
    parameters = 0
    for seed in range(seeds):
        for how in sorted(found, reverse=seed % 2 == 1):
            folder = place.with_name(f"{place.name}-{how}-{seed}")
            seconds, updates, parameters = run(folder, node, scene, seed, is_sealed=how == "sealed")
            found[how].append((seconds, updates))
    times = {how: Spread(tuple(seconds for seconds, _ in each)) for how, each in found.items()}
    counts = {how: Spread(tuple(float(updates) for _, updates in each)) for how, each in found.items()}
    return {
        "task": scene.task.removeprefix("benchmarks.").removesuffix(":task"),
        "parameters": parameters,
        "target": scene.target,
        "plain_s": times["plain"],
        "sealed_s": times["sealed"],
        "ratio": times["sealed"].total / times["plain"].total,
        "plain_n": counts["plain"],
        "sealed_n": counts["sealed"],
    }


def run(
    folder: Path, node: BrokerNode, scene: Scene, seed: int, *, is_sealed: bool
) -> tuple[float, int, int]:
    """Run one federation; return its seconds to the target, its updates, and the model's parameters."""
    folder.mkdir()
    flags = [
        *("--strategy", "fedbuff", "--buffer-size", str(WORKERS), "--weigh-by", "none", "--seed", str(seed)),
        *("--local-steps", str(scene.local_steps), "--target", scene.target, "--target-hold", "1"),
    ]
    with Federation(folder.name, node.amqp_url, folder, task=scene.task) as federation:
        key: list[str] = []
        if is_sealed:
            made = federation.fluffle("keys", "sealed", ".")
            if made.returncode:
                raise RuntimeError(made.stderr)
            flags, key = [*flags, "--sealed", PUBLIC], ["--sealed-secret", SECRET]
        aggregator = federation.aggregator("aggregator", *flags)
        aggregator.wait_for("leading")
        evaluator = federation.evaluator(*key)
        workers = [federation.worker(site, *key, sites=WORKERS) for site in range(WORKERS)]
        if code := aggregator.wait_for_exit():
            raise RuntimeError(f"the aggregator ended with {code}:\n{aggregator.log.read_text()[-2000:]}")
        final = federation.newest()
        for part in (evaluator, *workers):
            part.wait_for_exit()
    delete(node.amqp_url, federation.topology)
    return final.training_s, final.updates, final.layout.size


if __name__ == "__main__":
    main()
