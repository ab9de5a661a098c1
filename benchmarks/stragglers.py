"""How long until the model is good, when some clients are 32 times slower than others: who waits for whom.

    python -m benchmarks.stragglers

Eight clients on digits (Dirichlet 0.5, seed 0), one hidden layer of 64, SGD 0.1, minibatches of 32, one local
epoch; after each round they sleep for 0.05, 0.05, 0.1, 0.1, 0.2, 0.4, 0.8 and 1.6 s. A real RabbitMQ, and an
aggregator, eight workers and an evaluator as a user starts them, with a numpy task. Version 0 is made when
all of them wait for it.

Every version is evaluated on the held-out fifth. An accuracy counts from the commit of its version until the
commit of the next; the time is the one when it has been at the level for 3 s without a break, counted from
version 0. The synchronous federations mostly sleep: all of them run at the same time as the asynchronous
ones, which run one after the other. `server_rate` is the server learning rate; `sooner` divides plain
FedAvg's time to 95 % by this one's, repeat by repeat. `gave_up` counts the repeats that did not hold 95 %
within 180 s, and stand with that.
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
from benchmarks.floor import delete
from benchmarks.measuring import Cell, OtherWork, Report, Spread, wide_console
from benchmarks.sides import private_broker
from fluffle.record import ModelVersion
from fluffle.safetensors_file import write_model
from fluffle.wire import decode_version
from fluffle_cli.node import BrokerNode
from harness.federation import Federation, wait_until
from harness.strategy_flags import strategy_flags

SLEEPS_S = (0.05, 0.05, 0.1, 0.1, 0.2, 0.4, 0.8, 1.6)
LEVELS = (0.9, 0.95)
HOLD_S = 3.0
# Whoever does not hold 95 % by then has taken longer: its time is at least this.
GIVE_UP_S = 180.0
POLL_S = 0.2
# More threads than federations at a time.
MANY = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the aggregator is told."""

    strategy: str
    buffer_size: int = 1
    server_rate: float = 1.0
    staleness: str = "polynomial:0.5"
    mixing: float = 0.6

    @property
    def flags(self) -> Sequence[str]:
        """The aggregator's flags."""
        said = ["--staleness", self.staleness, "--mixing", str(self.mixing)]
        rate = ["--server-learning-rate", str(self.server_rate)]
        return [*said, *rate, *strategy_flags(self.strategy, self.buffer_size)]


FEDAVG = Setting(strategy="fedavg", buffer_size=len(SLEEPS_S))
# Without a discount, since the slow sites have labels that are rare elsewhere.
FEDBUFF = Setting(strategy="fedbuff", buffer_size=2, staleness="constant")
SYNCHRONOUS = (FEDAVG, Setting(strategy="fedavg", buffer_size=len(SLEEPS_S), server_rate=2.0))
# The order in which updates come is another each time.
RACES = 3
ASYNCHRONOUS = (
    Setting(strategy="fedasync"),
    FEDBUFF,
)


@dataclass
class Course:
    """The accuracy of a federation's versions, one after the other; `held` says when a level had held.

    `rounds` is the number of versions until the highest level had held, or so far.
    """

    began: float = math.nan
    held: dict[float, float] = field(default_factory=dict)
    updates: int = 0
    rounds: int = 0
    stopped_s: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    _since: dict[float, float] = field(default_factory=dict)

    def note(self, version: ModelVersion) -> None:
        """Take in the next version."""
        if math.isnan(self.began):
            self.began = version.committed_at
        weights = version.weights
        accuracy = small_networks.digits.evaluate(weights)["accuracy"]
        at_s = version.committed_at - self.began
        self.curve.append((at_s, accuracy))
        for level in LEVELS:
            since = self._since.get(level)
            if since is not None and at_s >= since + HOLD_S:
                self.held.setdefault(level, since + HOLD_S)
            if accuracy < level:
                self._since.pop(level, None)
            else:
                self._since.setdefault(level, at_s)
        if not self.is_over:
            self.updates = version.updates
            self.rounds = version.version

    @property
    def is_over(self) -> bool:
        """Whether every level has held."""
        return len(self.held) == len(LEVELS)

    @property
    def seconds(self) -> float:
        """How long this has gone on by now."""
        return 0.0 if math.isnan(self.began) else time.time() - self.began

    def stop(self) -> None:
        """Note how long it has gone on."""
        self.stopped_s = self.seconds


@dataclass(frozen=True, slots=True)
class Place:
    """Where federations run; `enough` ends all of them early."""

    node: BrokerNode
    folder: Path
    enough: threading.Event = field(default_factory=threading.Event)

    def run(self, setting: Setting, name: str, *, seed: int, course: Course) -> Course:
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
            for site, sleep_s in enumerate(SLEEPS_S):
                federation.worker(site, "--delay", str(sleep_s), "--seed", str(seed), sites=len(SLEEPS_S))
            federation.evaluator()
            everyone, queue = len(SLEEPS_S) + 1, topology.updates.name
            # Each says hello before it waits for version 0.
            wait_until(lambda: broker.state(queue).messages == everyone, "the workers")
            federation.aggregator("aggregator", "--initial-model", "initial.safetensors", *setting.flags)
            with broker.read_stream(topology.models.name, offset="first") as reader:
                while not (course.is_over or self.enough.is_set() or course.seconds > GIVE_UP_S):
                    if (body := reader.next_body(POLL_S)) is not None:
                        course.note(decode_version(body))
        course.stop()
        delete(self.node.amqp_url, topology)
        return course


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="stragglers", description="Measure seconds to a good model.")
    parser.add_argument("--repeats", type=int, default=3, help="each from another version 0 (default: 3)")
    arguments = parser.parse_args()
    console = wide_console()
    report = Report("stragglers", "stragglers: seconds until the accuracy has held for 3 s")
    measure_all(report, console, repeats=arguments.repeats)
    report.show(console)


def measure_all(report: Report, console: Console, *, repeats: int = 3) -> None:
    """Measure every setting; the synchronous repeats all run in the back, from the beginning."""
    courses: dict[Setting, list[Course]] = {each: [] for each in (*SYNCHRONOUS, *ASYNCHRONOUS)}
    others = OtherWork()
    with a_place(report) as place, console.status("") as status, ThreadPoolExecutor(MANY) as pool:
        in_the_back = [
            (
                each,
                pool.submit(place.run, each, f"synchronous-{repeat}-{number}", seed=repeat, course=Course()),
            )
            for repeat in range(repeats)
            for number, each in enumerate(SYNCHRONOUS)
        ]
        with ending_early(place):
            for repeat in range(repeats):
                for number, each in enumerate(ASYNCHRONOUS):
                    status.update(f"stragglers, repeat {repeat + 1} of {repeats}: {each.strategy}")
                    name = f"asynchronous-{repeat}-{number}"
                    courses[each].append(place.run(each, name, seed=repeat, course=Course()))
            for each, future in in_the_back:
                courses[each].append(future.result())
    for setting, found in courses.items():
        report.add(row(setting, found, courses[FEDAVG]), others=others.share)


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


def row(setting: Setting, courses: Sequence[Course], baseline: Sequence[Course]) -> dict[str, Cell | Spread]:
    """Return the row of one setting."""
    return {
        "strategy": setting.strategy,
        "K": setting.buffer_size,
        "server_rate": setting.server_rate,
        "staleness": setting.staleness,
        **{f"s_to_{level:.0%}": times(courses, level) for level in LEVELS},
        "updates": median(course.updates for course in courses),
        "gave_up": sum(not course.is_over for course in courses),
        "sooner": sooner(baseline, courses),
        # Of the first repeat, for a plot.
        "curve_s_values": [round(at_s, 3) for at_s, _ in courses[0].curve],
        "curve_accuracy_values": [accuracy for _, accuracy in courses[0].curve],
    }


def times(courses: Sequence[Course], level: float) -> Spread:
    """Return when a level had held, or when that was given up: it is later, then."""
    return Spread(tuple(course.held.get(level, course.stopped_s) for course in courses))


def sooner(baseline: Sequence[Course], courses: Sequence[Course]) -> Spread:
    """Return how many times sooner 95 % had held than in the baseline."""
    return times(baseline, LEVELS[-1]).over(times(courses, LEVELS[-1]))


if __name__ == "__main__":
    main()
