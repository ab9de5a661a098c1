"""The settings of a simulation: those of the aggregator, the devices and the data."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fluffle.compression import leaves_out
from fluffle.errors import ConfigError
from fluffle.settings import SharedSettings
from fluffle.task import Site
from fluffle_aggregator.choices import readable_by
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_cli.held import HOLD_S, GoalByTime
from fluffle_cli.report.run import make_empty_folder
from fluffle_cli.simulate.availability import Always, Availability, OnOff, Traced
from fluffle_cli.simulate.devices import seconds_of_devices, seconds_of_rounds
from fluffle_cli.simulate.from_run import NEEDS_TRAINING, seconds_of_its_devices
from fluffle_cli.simulate.population import Population, parse_availability, parse_late
from fluffle_cli.simulate.traces import read_intervals, read_seconds

TRACE = "trace:"
MANY_RUNS = ("sweep", "seeds", "recommend")


def require_distribution(text: str) -> None:
    """Raise ValueError unless a setting is a trace, or can be read by `seconds_of_devices`."""
    if not _is_trace(text):
        with _or_a_trace():
            seconds_of_devices(text, 1, np.random.default_rng(0))


def require_availability(text: str) -> None:
    """Raise ValueError unless a setting is a trace, or can be read by `parse_availability`."""
    if not _is_trace(text):
        with _or_a_trace():
            parse_availability(text)


@contextmanager
def _or_a_trace() -> Iterator[None]:
    """Name the trace too where the error lists what is known."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}; or trace:FILE") from error


def _is_trace(text: str) -> bool:
    if text.partition(":")[0] == "trace" and not text.removeprefix(TRACE).strip():
        raise ValueError(f"must name the file of the trace, such as trace:devices.csv, not {text!r}")
    return text.startswith(TRACE)


Distribution = Annotated[str, readable_by(require_distribution)]


class SimulateSettings(AggregatorSettings):
    """Flags of `fluffle simulate`, keys of the table [simulate]."""

    part: ClassVar[str] = "simulate"
    is_service: ClassVar[bool] = False
    has_noise_secret: ClassVar[bool] = False

    task: str = Field(
        "digits",
        description="What to train: digits, fashion_mnist, diabetes, or your own package.module:name.",
    )
    train: bool = Field(
        True,
        description="Train. With --no-train updates are only counted, which answers questions of speed and "
        "staleness for up to 100,000 workers; no task is loaded.",
    )
    clients: int = Field(
        4, ge=1, le=100_000, description="Number of workers, each with its part of the data."
    )
    split: str = Field(
        "dirichlet:0.5", description="How the data is split: iid, dirichlet:ALPHA or shards:LABELS_PER_SITE."
    )
    device_seconds: Distribution = Field(
        "spread",
        description="Seconds that a device adds to each of its rounds: constant[:SECONDS] (1), "
        "spread[:FASTEST][:TIMES] (0.25 and 8), tiers[:FAST][:MIDDLE][:SLOW] (1, 2 and 4), "
        "half-normal[:SCALE][:LEAST] (1 and 0), lognormal[:MEDIAN][:SIGMA] (1 and 0.6), exponential[:MEAN] "
        "(1), zipf[:SECONDS][:EXPONENT][:MOST] (1, 1.2 and 60) or trace:FILE, a CSV file with the columns "
        "device and seconds_per_round. The numbers in parentheses are the defaults. Each device draws once.",
    )
    redraw: bool = Field(
        False,
        description="Draw device_seconds anew for each round. Needs half-normal, lognormal, exponential or "
        "zipf.",
    )
    example_seconds: Distribution = Field(
        "constant:0",
        description="Seconds that a device takes to train one example, besides its device_seconds; drawn in "
        "the same ways. The column of a trace is seconds_per_example.",
    )
    bandwidth: float | None = Field(
        None, gt=0, description="Mbit/s with which each device sends its updates. Default: no limit."
    )
    availability: Annotated[str, readable_by(require_availability)] = Field(
        "always",
        description="When devices are on: always, on-off[:ON][:OFF] (600 and 600 seconds in the mean, "
        "exponential) or trace:FILE, a CSV file with the columns device, from_s and to_s, which is repeated. "
        "The round of a device that is off waits.",
    )
    crashes: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability that a round is lost in a crash; then the device begins anew from the "
        "newest version.",
    )
    duplicates: float = Field(
        0.0, ge=0, le=1, description="Probability that an update is delivered twice; the second is refused."
    )
    late: Annotated[str, readable_by(parse_late)] | None = Field(
        None,
        description="Let devices join late, as SHARE:SECONDS: 0.25:60 lets a quarter of them join after 60 "
        "seconds.",
    )
    evaluate_every: int = Field(
        1,
        ge=1,
        description="Evaluate each of so many versions; and at the sites, with local_validation, before "
        "every so many rounds.",
    )
    local_validation: float = Field(
        0.0, ge=0, lt=1, description="Share of its data that each site holds out, to evaluate versions."
    )
    held_seconds: float = Field(
        HOLD_S,
        ge=0,
        description="The target is held when every evaluation within so many virtual seconds reaches it.",
    )
    from_run: Path | None = Field(
        None,
        description="Folder of a run: take its task, settings, number of workers, and how long their rounds "
        "took, wherever this command says nothing else.",
    )
    sweep: str | None = Field(
        None,
        description='Settings to play in all combinations, such as "buffer_size=2,4,8 '
        'strategy=fedbuff,fedasync". A strategy is played without the settings that it does not have.',
    )
    seeds: int | None = Field(
        None,
        ge=1,
        description="Play each combination with so many seeds, from --seed on. Default: 5 with --sweep.",
    )
    max_runs: int = Field(
        200, ge=1, description="Refuse a sweep that has more runs than this: combinations times seeds."
    )
    recommend: bool = Field(
        False,
        description="Name the combination of the sweep that holds the target first, and say whether its "
        "margin is more than chance.",
    )
    out: Path | None = Field(
        None,
        description="Folder for the results, by default runs/simulated-TASK-STRATEGY-DATE-TIME, and "
        "runs/sweep-TASK-DATE-TIME for a sweep.",
    )

    @property
    def is_sweep(self) -> bool:
        """Whether there is more than one run."""
        return self.sweep is not None or self.seeds is not None

    def check(self) -> None:
        """Raise ConfigError for what cannot be simulated."""
        if not self.train:
            self._require_countable()
        if "target_hold" in self.model_fields_set:
            raise ConfigError(
                "target_hold counts evaluations, which are fast with one strategy and slow with another: a "
                "simulation holds its target for --held-seconds, so leave target_hold out"
            )
        if "initial_model" in self.model_fields_set:
            raise ConfigError("a simulation begins with the weights of its task: leave initial_model out")
        self._require_private_sites()
        self.privacy_target()
        self.require_comparable()
        strategy = self.make_strategy()
        if strategy.one_update_per_version and strategy.buffer_size > self.clients:
            raise ConfigError(
                f"a round of {self.strategy} waits for updates of {strategy.buffer_size} workers, and there "
                f"are {self.clients}: give a --buffer-size of at most {self.clients}, or leave it out"
            )
        if self.make_plan(strategy).max_batch_size is not None:
            raise ConfigError(
                "a simulated device takes as long for an example in a large minibatch as in a small one, so "
                "that batch_size auto finds nothing: give a number"
            )
        self.make_commit_schedule(strategy)
        population = self.make_population()
        if self.round_seconds is not None and not all(population.example_s):
            raise ConfigError(
                f"round_seconds has devices choose their steps by how long one takes, and device "
                f"{list(population.example_s).index(0)} takes no time for an example: give --example-seconds "
                "above 0"
            )
        if leaves_out(self.codec):
            raise ConfigError(
                f"--codec {self.codec} is not simulated yet, because the worker keeps what it leaves out on "
                "its disk: choose float32, bfloat16 or int8"
            )
        self._require_an_end()

    def _require_an_end(self) -> None:
        """Raise ConfigError unless something ends the run; with dp its workers have sent all at some time."""
        if not (self.dp or self.max_seconds or self.max_versions or self.max_updates):
            raise ConfigError(
                "a simulation needs an end: give --max-seconds, --max-updates or --max-versions"
            )

    def _require_private_sites(self) -> None:
        """Raise ConfigError for what has no effect on sites with differential privacy, or on their noise."""
        if "dp_secret" in self.model_fields_set:
            raise ConfigError("the noise of a simulation follows from its seed: leave dp_secret out")
        if self.dp == "distributed":
            raise ConfigError("a simulation has no secure aggregation: give dp central or dp local")
        if self.dp and self.local_validation:
            raise ConfigError(
                "with dp no site reports what it measures, and local_validation has no effect: leave it out"
            )

    def _require_countable(self) -> None:
        """Raise ConfigError for settings that look at what updates contain."""
        given = self.model_fields_set
        if found := [name for name in NEEDS_TRAINING if name in given and getattr(self, name) is not None]:
            raise ConfigError(
                f"--no-train only counts updates, and {found[0]} looks at what they contain: leave it out"
            )
        if found := [name for name in MANY_RUNS if name in given and getattr(self, name)]:
            raise ConfigError(f"--no-train plays one run, without {found[0]}: leave it out, or train")
        is_counted = self.local_steps is not None or self.round_seconds is not None
        if not is_counted and (self.from_run or "example_seconds" in given):
            raise ConfigError(
                "--no-train knows no number of examples, and example_seconds and from_run say how long one "
                "takes: give local_steps too, or give device_seconds instead"
            )

    def make_strategy(self) -> Strategy:
        """Return the strategy; a synchronous one waits for all workers, unless `buffer_size` is given."""
        kind = STRATEGIES[self.strategy]
        if kind.is_synchronous and "buffer_size" not in self.model_fields_set:
            return AggregatorSettings.make_strategy(self.model_copy(update={"buffer_size": self.clients}))
        return super().make_strategy()

    def given(self) -> dict[str, object]:
        """Return the settings that were given; those of the evaluator are none of the sites here."""
        return {name: value for name, value in super().given().items() if name != "evaluate_every"}

    def make_goal(self) -> Goal:
        """Return what ends the federation: its target counts once it has held for `held_seconds`."""
        return GoalByTime.of(super().make_goal(), hold_s=self.held_seconds)

    def require_comparable(self) -> None:
        """Raise ConfigError when a recommendation is wanted, and nothing is compared."""
        needed = {"--sweep": self.is_sweep, "a --target": bool(self.target)}
        lacks = [name for name, is_there in needed.items() if not is_there]
        if self.recommend and lacks:
            raise ConfigError(
                f"--recommend compares how soon the runs of a sweep hold a target: give {' and '.join(lacks)}"
            )

    @property
    def shown(self) -> dict[str, str]:
        """The split, and the settings of the simulation itself that were given, by their flags' names."""
        given = self.model_dump(
            include=self.model_fields_set | {"split"}, exclude=set(SharedSettings.model_fields)
        )
        return {name.replace("_", "-"): str(value) for name, value in given.items() if value is not None}

    def site(self, index: int) -> Site:
        """Return one device's part of the data."""
        return Site(
            index=index,
            count=self.clients,
            split=self.split,
            seed=self.seed,
            validation=self.local_validation,
        )

    def make_population(self) -> Population:
        """Return the devices; ConfigError when a trace has faults, or a round would take no time."""
        fixed_s, example_s = self._seconds_of_devices()
        for device, seconds in enumerate(zip(fixed_s, example_s, strict=True)):
            if not all(map(isfinite, seconds)):
                raise ConfigError(
                    f"a round of device {device} would never end: give smaller numbers in --device-seconds "
                    "and --example-seconds"
                )
            if not any(seconds):
                raise ConfigError(
                    f"a round of device {device} takes 0 s, so that it would train without end: give "
                    "--device-seconds or --example-seconds above 0"
                )
        return Population(
            fixed_s,
            example_s,
            self._make_availability(),
            redrawn=self._redrawn(),
            joins_s=self._joins_s(),
            crashes=self.crashes,
            duplicates=self.duplicates,
            seed=self.seed,
        )

    def _seconds_of_devices(self) -> tuple[list[float], list[float]]:
        """Return what each device adds to a round, and what it takes for one example."""
        if self.from_run:
            return seconds_of_its_devices(self.from_run, self.strategy, self.clients)
        random = np.random.default_rng([self.seed, 7])
        fixed_s = self._seconds(self.device_seconds, "seconds_per_round", random)
        return fixed_s, self._seconds(self.example_seconds, "seconds_per_example", random)

    def _seconds(self, text: str, column: str, random: np.random.Generator) -> list[float]:
        if _is_trace(text):
            return read_seconds(Path(text.removeprefix(TRACE)), column, self.clients)
        found: list[float] = seconds_of_devices(text, self.clients, random).tolist()
        return found

    def _redrawn(self) -> Iterator[float] | None:
        if not self.redraw:
            return None
        try:
            return seconds_of_rounds(self.device_seconds, np.random.default_rng([self.seed, 8]))
        except ValueError as error:
            raise ConfigError(f"with --redraw, --device-seconds {error}") from error

    def _make_availability(self) -> Availability:
        if _is_trace(self.availability):
            return Traced(*read_intervals(Path(self.availability.removeprefix(TRACE)), self.clients))
        means = parse_availability(self.availability)
        return Always() if means is None else OnOff(self.clients, *means, seed=self.seed)

    def _joins_s(self) -> dict[int, float]:
        """Return when the devices join that join late; the seed chooses them."""
        if self.late is None:
            return {}
        share, seconds = parse_late(self.late)
        order = np.random.default_rng([self.seed, 9]).permutation(self.clients)
        return dict.fromkeys(order[: round(share * self.clients)].tolist(), seconds)

    def make_folder(self) -> Path:
        """Make the folder of this run; ConfigError when it has something in it already."""
        name = self.task.partition(":")[0].rpartition(".")[2]
        when = datetime.now().astimezone()
        kind = f"sweep-{name}" if self.is_sweep else f"simulated-{name}-{self.strategy}"
        folder = self.out or Path("runs") / f"{kind}-{when:%Y%m%d-%H%M%S}"
        return make_empty_folder(folder, given_as="--out ")
