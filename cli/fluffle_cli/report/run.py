"""A run: its folder, as `fluffle demo` and `fluffle report --from-broker` write it, and what came out of it.

`summary.json` says what the run was, `metrics.jsonl` has a line for each version, and `events.jsonl` one for
whatever else happened. The files may be anybody's, and are read with suspicion.
"""

import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from fluffle.errors import ConfigError
from fluffle.events import AFTER_THE_END
from fluffle_aggregator.goal import Target, parse_target
from fluffle_cli.held import held_from
from fluffle_cli.over_seeds import Speedup, median_speedup
from fluffle_cli.plain_json import as_text
from fluffle_cli.watching.state import REJECTED, TOOK_OVER, FederationState
from fluffle_cli.watching.view import FederationView, Happening, Term, Version

SUMMARY: Final = "summary.json"
METRICS: Final = "metrics.jsonl"
EVENTS: Final = "events.jsonl"
MOST_REFUSALS: Final = 300
PACKAGES: Final = ("fluffle", "numpy", "pika", "tensorflow", "keras", "scikit-learn")
Read = TypeVar("Read")


@dataclass(frozen=True, slots=True, kw_only=True)
class AboutFederation:
    """What a federation's versions do not say: its strategy, its folder, its seed, and when its target holds.

    The target holds when every evaluation within `held_seconds` reaches it; without these, from the first
    evaluation on that reaches it, and so do all later ones. Federations of one strategy that are compared
    have a `name`.
    """

    strategy: str
    folder: str
    seed: int | None = None
    held_seconds: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a run was: a demo, or one federation that was none.

    `seed` is the first one where there are several, and each of `runs` has its own. `central` are the metrics
    of the same model trained in one place. Without a `target`, `metric_shown` says which metric the curves
    show. `settings` and `versions` (of Fluffle, Python, RabbitMQ ...) are for people.
    """

    task: str
    seed: int | None = None
    target: str = ""
    delays_s: Sequence[float] = ()
    central: Mapping[str, float] = field(default_factory=dict)
    runs: Annotated[Sequence[AboutFederation], Field(min_length=1)]
    metric_shown: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class FederationRun:
    """One federation of a run: its versions, at least one, and what else happened."""

    about: AboutFederation
    versions: Sequence[Version]
    happened: Sequence[Happening] = ()

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return self.about.strategy

    @property
    def name(self) -> str:
        """What this federation is called among those of its run that have the same seed."""
        return self.about.name or self.strategy

    @property
    def refused(self) -> list[Happening]:
        """The refused messages whose reason is known, without those that came after the end."""
        return [each for each in self.happened if each.what == REJECTED and each.reason != AFTER_THE_END]

    @property
    def last(self) -> Version:
        """The newest version."""
        return self.versions[-1]

    @cached_property
    def view(self) -> FederationView:
        """What is known of the federation at its last version; its seconds are those of `seconds_of`."""
        state = FederationState(self.last.federation, self.began_at)
        for each in self.versions:
            state.read(replace(each, training_s=self.seconds_of(each)))
        view = state.view(self.last.committed_at)
        return replace(
            view,
            newest=self.last,
            terms=[self._began(each) for each in view.terms],
            reasons=dict(Counter(each.reason for each in self.refused).most_common()),
            refusals=self.refused[: -MOST_REFUSALS - 1 : -1],
            after_the_end=sum(1 for each in self.happened if each.reason == AFTER_THE_END),
        )

    def _began(self, term: Term) -> Term:
        """Return a term with when its first version was committed, and who had said last that it leads."""
        at = next((each.committed_at for each in self.versions if each.term == term.term), None)
        leaders = [each.name for each in self.happened if at and each.what == TOOK_OVER and each.at <= at]
        return replace(term, at=at, leader=leaders[-1] if leaders else None)

    @cached_property
    def began_at(self) -> float:
        """When the first round began, or the oldest known version was committed, in Unix time.

        By the clocks of the workers, where these say when their updates were published. Version 0 may be
        there for long before anybody trains.
        """
        first = self.versions[0]
        folded = () if first.updates else next((each.folded for each in self.versions if each.updates), ())
        starts = [at - one.train_s for one in folded if (at := one.published_at or one.received_at) > 0]
        return max(first.committed_at, min(starts, default=first.committed_at))

    def seconds_of(self, version: Version) -> float:
        """Return the seconds from the start of the first round to the commit of a version."""
        return round(max(0.0, version.committed_at - self.began_at), 3)

    @property
    def seconds(self) -> float:
        """The seconds from the start of the first round to the last version."""
        return self.seconds_of(self.last)

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Return when each evaluated version was committed, and its metric, in the order of versions."""
        committed = {each.version: self.seconds_of(each) for each in self.versions}
        both = [found for each in self.versions for found in (each.evaluation, each.site_evaluation)]
        evaluations = [each for each in both if each and metric in each.metrics]
        values = {each.version: each.metrics[metric] for each in evaluations}
        return [(committed[number], values[number]) for number in sorted(values) if number in committed]

    def held_s(self, target: Target) -> float:
        """Return the same as `seconds_to`, and infinity if the target never held."""
        reached = self.seconds_to(target)
        return math.inf if reached is None else reached

    def seconds_to(self, target: Target | None) -> float | None:
        """Return when the first version was committed from which on the target held; None if none was."""
        if target is None:
            return None
        if (hold_s := self.about.held_seconds) is not None:
            return held_from(self.curve(target.metric), target, hold_s=hold_s, until_s=self.seconds)
        reached: float | None = None
        for seconds, value in reversed(self.curve(target.metric)):
            if not target.is_met({target.metric: value}):
                break
            reached = seconds
        return reached


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A run: its folder, what it was, and its federations."""

    folder: Path
    about: About
    federations: Sequence[FederationRun]

    @property
    def goal(self) -> Target | None:
        """The target, read; None when there is none. ValueError when it cannot be read."""
        return parse_target(self.about.target) if self.about.target else None

    @property
    def metric(self) -> str:
        """The target's metric, or the one that is shown without a target."""
        return self.goal.metric if self.goal else self.about.metric_shown

    @property
    def groups(self) -> dict[str, dict[int | None, FederationRun]]:
        """The federations by their name, in the order of the run, and by their seed."""
        found: dict[str, dict[int | None, FederationRun]] = {}
        for each in self.federations:
            found.setdefault(each.name, {})[each.about.seed] = each
        return found

    @property
    def speedups(self) -> dict[int | None, Speedup]:
        """How many times as fast as the first group the second one is, for each seed that both have.

        Empty unless there are two groups and a target.
        """
        groups = list(self.groups.values())
        if len(groups) != 2 or self.goal is None:
            return {}
        baseline, other = groups
        return {
            seed: Speedup.of(
                other[seed].held_s(self.goal),
                baseline_s=one.held_s(self.goal),
                watched_s=one.seconds,
            )
            for seed, one in baseline.items()
            if seed in other
        }


def make_empty_folder(folder: Path, *, given_as: str = "") -> Path:
    """Make a folder and return it; ConfigError when it has something in it already, or cannot be made.

    `given_as` is the option that named it, with a space behind, for the error.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{given_as}{folder} is not empty: choose another folder, or delete this one")
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return folder


def append_lines(path: Path, lines: Iterable[Version | Happening]) -> None:
    """Add a line of JSON for each version to `metrics.jsonl`, or for each happening to `events.jsonl`."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(as_text(asdict(each)) + "\n" for each in lines)


def write_summary(run: Run) -> None:
    """Write `summary.json`: what the run was and, for other programs, what came out of it.

    `ratio` is the median over the seeds of how many times as fast as the first strategy the second one is.
    """
    runs = [
        asdict(each.about)
        | {name: getattr(each.last, name) for name in ("finished", "updates", "rejected")}
        | {"began_at": each.began_at, "seconds": each.seconds, "seconds_to_target": each.seconds_to(run.goal)}
        | {"versions": each.last.version}
        | {"workers": {worker.name: asdict(worker) for worker in each.view.workers.values()}}
        for each in run.federations
    ]
    found = list(run.speedups.values())
    ratio = median_speedup(found).times if found else None
    said = asdict(run.about) | {"ratio": ratio, "runs": runs}
    (run.folder / SUMMARY).write_text(as_text(said, indent=2) + "\n", encoding="utf-8")


def read_run(folder: Path) -> Run:
    """Read a run's files. Raises ConfigError that names the file that is missing, or is no such file."""
    path = folder / SUMMARY
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no {SUMMARY}: give the folder of a finished `fluffle demo` (runs/...); with "
            "--from-broker, one is made of a federation that is on RabbitMQ"
        )
    [about] = _read(path, About)
    federations = [_read_federation(folder, each) for each in about.runs]
    return Run(folder=folder, about=about, federations=federations)


def versions_in_use(server: str) -> dict[str, str]:
    """Return the versions of the packages here and of what is below them; `server` names the broker."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "Python": platform.python_version(), "system": platform.platform(), "broker": server}


def _read_federation(folder: Path, about: AboutFederation) -> FederationRun:
    place = folder / about.folder
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{folder / SUMMARY} names a folder outside its own: {about.folder!r}")
    versions = _read(place / METRICS, Version)
    if not versions:
        raise ConfigError(f"{place / METRICS} has no version in it: nothing was trained")
    if not all(math.isfinite(each.committed_at) for each in versions):
        raise ConfigError(f"{place / METRICS} has a version without a time: nothing can be drawn")
    happened = _read(place / EVENTS, Happening) if (place / EVENTS).exists() else []
    return FederationRun(about=about, versions=versions, happened=sorted(happened, key=lambda each: each.at))


def _read(path: Path, kind: type[Read]) -> list[Read]:
    """Read a file of JSON lines, or of one JSON value."""
    try:
        text, reader = path.read_text(encoding="utf-8"), TypeAdapter(kind)
        # Not splitlines(): JSON may have other line ends, such as U+2028, inside its strings.
        lines = filter(str.strip, text.split("\n")) if path.suffix == ".jsonl" else [text]
        return [reader.validate_json(each) for each in lines]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a file of a run: {_why(error)[:300]}") from error


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ValidationError):
        faults = error.errors(include_url=False)
        return "; ".join(": ".join([*map(str, fault["loc"]), fault["msg"]]) for fault in faults)
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
