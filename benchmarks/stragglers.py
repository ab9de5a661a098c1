"""How long until the model is good, when some clients are 32 times slower than others: who waits for whom.

    python -m benchmarks.stragglers

Eight clients on digits (Dirichlet 0.5), one hidden layer of 64, SGD 0.1, minibatches of 32, one local epoch;
after each round they sleep for 0.05, 0.05, 0.1, 0.1, 0.2, 0.4, 0.8 and 1.6 s. A real RabbitMQ, and an
aggregator, eight workers and an evaluator as a user starts them, with a numpy task. Version 0 is made when
all of them wait for it. The seed is that of the split, the first weights and the minibatches.

Every version is evaluated on the held-out fifth. An accuracy counts from the commit of its version until the
commit of the next. A level is held from the first version after which every evaluation within 3 s reaches it
too; the seconds are those since version 0. The synchronous federations mostly sleep: a few of them run at the
same time as the asynchronous ones, which run one after the other. `against_fedavg` is how many times as fast
as plain FedAvg with the same seed a strategy holds 95 %, the median and the worst of the seeds. A run that
does not hold it within 180 s counts as never; where FedAvg does not, it counts with these 180 s.
"""

import argparse
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks import small_networks
from benchmarks.contenders import flags_of
from benchmarks.floor import delete
from benchmarks.measuring import (
    Cell,
    OtherWork,
    Report,
    Spread,
    seconds_in_words,
    times_as_fast,
    wide_console,
)
from benchmarks.sides import private_broker
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_version
from fluffle.safetensors_file import write_model
from fluffle_aggregator.goal import Target
from fluffle_cli.held import HOLD_S, held_from
from fluffle_cli.node import BrokerNode
from harness.federation import Federation, wait_until

SLEEPS_S = (0.05, 0.05, 0.1, 0.1, 0.2, 0.4, 0.8, 1.6)
LEVELS = (0.9, 0.95)
# Whoever does not hold 95 % by then has taken longer: its time is at least this.
GIVE_UP_S = 180.0
POLL_S = 0.2
# Synchronous federations at a time: each has ten processes to start.
IN_THE_BACK = 4
FEDAVG = f"fedavg buffer_size={len(SLEEPS_S)}"
# Without a discount, since the slow sites have labels that are rare elsewhere.
FEDBUFF = "fedbuff buffer_size=2 staleness=constant"
OTHERS = (f"{FEDAVG} server_learning_rate=2.0", "fedasync", FEDBUFF)
# The order in which updates come is another each time.
RACES = 3


@dataclass
class Course:
    """The accuracy of a federation's versions, one after the other; `held` says from when a level was held.

    `curve` has for each version, from 0 on, the seconds at which it was made and its accuracy.
    """

    began: float = math.nan
    held: dict[float, float] = field(default_factory=dict)
    updates: list[int] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)

    def note(self, version: ModelVersion) -> None:
        """Take in the next version."""
        if math.isnan(self.began):
            self.began = version.committed_at
        at_s = version.committed_at - self.began
        self.curve.append((at_s, small_networks.digits.evaluate(version.weights)["accuracy"]))
        self.updates.append(version.updates)
        for level in LEVELS:
            target = Target("accuracy", ">=", level)
            held_s = held_from(self.curve, target, hold_s=HOLD_S, until_s=at_s)
            if held_s is not None:
                self.held.setdefault(level, held_s)

    @property
    def is_over(self) -> bool:
        """Whether every level has held."""
        return len(self.held) == len(LEVELS)

    @property
    def rounds(self) -> int:
        """The versions before the one from which the highest level is held: until it is, the least number."""
        if held_s := self.held.get(LEVELS[-1]):
            return next(number for number, (at_s, _) in enumerate(self.curve) if at_s >= held_s)
        below = (number for number, (_, value) in enumerate(self.curve) if value < LEVELS[-1])
        return max(below, default=-1) + 1

    @property
    def seconds(self) -> float:
        """How long this has gone on by now."""
        return 0.0 if math.isnan(self.began) else time.time() - self.began


@dataclass(frozen=True, slots=True)
class Place:
    """Where federations run; `enough` ends all of them early."""

    node: BrokerNode
    folder: Path
    enough: threading.Event = field(default_factory=threading.Event)

    def run(self, label: str, name: str, *, seed: int, course: Course) -> Course:
        """Run one federation from its first process until every level has held, or it has been enough."""
        folder = self.folder / name
        folder.mkdir()
        write_model(folder / "initial.safetensors", small_networks.digits.initial_weights(seed))
        with (
            Federation(name, self.node.amqp_url, folder, "benchmarks.small_networks:digits") as federation,
            federation.connect() as broker,
        ):
            topology = federation.topology
            broker.declare(topology)
            seeds = ("--seed", str(seed), "--split-seed", str(seed))
            for site, sleep_s in enumerate(SLEEPS_S):
                federation.worker(site, "--delay", str(sleep_s), *seeds, sites=len(SLEEPS_S))
            federation.evaluator()
            everyone, queue = len(SLEEPS_S) + 1, topology.updates.name
            # Each says hello before it waits for version 0.
            wait_until(lambda: broker.state(queue).messages == everyone, "the workers")
            federation.aggregator("aggregator", "--initial-model", "initial.safetensors", *flags_of(label))
            with broker.read_stream(topology.models.name, offset="first") as reader:
                while not (course.is_over or self.enough.is_set() or course.seconds > GIVE_UP_S):
                    if (body := reader.next_body(POLL_S)) is not None:
                        course.note(decode_version(body))
        delete(self.node.amqp_url, topology)
        return course


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="stragglers", description="Measure seconds to a good model.")
    parser.add_argument("--seeds", type=int, default=5, help="seeds, from 0 on (default: 5)")
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=OTHERS,
        metavar="'NAME SETTING=VALUE ...'",
        help=f"what is compared with '{FEDAVG}' (default: {', '.join(map(repr, OTHERS))})",
    )
    given = parser.parse_args()
    console = wide_console()
    report = Report("stragglers", "stragglers: seconds from which the accuracy held for 3 s")
    measure_all(report, console, [FEDAVG, *given.strategies], seeds=given.seeds)
    report.show(console)


def measure_all(report: Report, console: Console, labels: Sequence[str], *, seeds: int) -> None:
    """Measure every strategy; the synchronous ones run in the back, from the beginning."""
    others = OtherWork()
    courses: dict[str, list[Course]] = {label: [] for label in labels}
    synchronous = [label for label in labels if label.startswith("fedavg")]
    with a_place(report) as place, console.status("") as status, ThreadPoolExecutor(IN_THE_BACK) as pool:
        in_the_back = [
            (label, pool.submit(place.run, label, f"synchronous-{seed}-{number}", seed=seed, course=Course()))
            for seed in range(seeds)
            for number, label in enumerate(synchronous)
        ]
        with ending_early(place):
            for seed in range(seeds):
                for number, label in enumerate(each for each in labels if each not in synchronous):
                    status.update(f"stragglers, seed {seed + 1} of {seeds}: {label}")
                    name = f"asynchronous-{seed}-{number}"
                    courses[label].append(place.run(label, name, seed=seed, course=Course()))
            status.update("stragglers: the synchronous federations")
            for label, future in in_the_back:
                courses[label].append(future.result())
    for label, found in courses.items():
        report.add(row(label, found, courses[FEDAVG]), others=others.share)


class Race:
    """FedAvg, which goes on in the back, against the median of FedBuff's courses, which are over.

    FedAvg's time is counted as 1.6 s a round, the sleep of its slowest client: less than it takes, so that
    other work on this machine cannot lengthen it.
    """

    def __init__(self, early: Sequence[Course], late: Course) -> None:
        self._early_s = median(course.held[LEVELS[-1]] for course in early)
        self._late = late

    @property
    def sooner(self) -> float:
        """How many times sooner FedBuff held 95 %: at least so many, as long as FedAvg has not."""
        return self._late.rounds * max(SLEEPS_S) / self._early_s

    @property
    def is_over(self) -> bool:
        """Whether FedAvg, too, has held every level."""
        return self._late.is_over

    def wait(self, enough: float, *, until: float) -> None:
        """Wait until FedAvg is over, or so many times later already, or `until` (monotonic time)."""
        while not self.is_over and self.sooner < enough and time.monotonic() < until:
            time.sleep(POLL_S)


@contextmanager
def racing(place: Place) -> Iterator[Race]:
    """Start FedAvg, and FedBuff RACES times beside it; give the race after those, and end it at the end."""
    late = Course()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(place.run, FEDAVG, "synchronous", seed=0, course=late)
        try:
            early = [
                place.run(FEDBUFF, f"asynchronous-{number}", seed=0, course=Course())
                for number in range(RACES)
            ]
            yield Race(early, late)
        finally:
            place.enough.set()
        future.result()


@contextmanager
def a_place(report: Report) -> Iterator[Place]:
    """Start a private RabbitMQ in a folder that is gone afterwards."""
    with private_broker(report) as (folder, node):
        yield Place(node, folder)


@contextmanager
def ending_early(place: Place) -> Iterator[None]:
    """End what runs in the back when an error ends this: nobody would wait for it."""
    try:
        yield
    except BaseException:
        place.enough.set()
        raise


def row(label: str, courses: Sequence[Course], baseline: Sequence[Course]) -> dict[str, Cell | Spread]:
    """Return the row of one strategy."""
    mine, theirs = (times(each, LEVELS[-1]) for each in (courses, baseline))
    return {
        "strategy": label,
        **{f"s_to_{level:.0%}": seconds_in_words(times(courses, level)) for level in LEVELS},
        "updates": median(each.updates[min(each.rounds, len(each.updates) - 1)] for each in courses),
        "against_fedavg": times_as_fast(mine, theirs, GIVE_UP_S),
        # Of the first seed, for a plot.
        "curve_s_values": [round(at_s, 3) for at_s, _ in courses[0].curve],
        "curve_accuracy_values": [accuracy for _, accuracy in courses[0].curve],
    }


def times(courses: Sequence[Course], level: float) -> list[float]:
    """Return from when a level was held; infinity where it was not."""
    return [course.held.get(level, math.inf) for course in courses]


if __name__ == "__main__":
    main()
