"""The runs of a sweep: each combination of the settings that are swept, with each seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from math import prod
from typing import Final

from fluffle.errors import ConfigError
from fluffle.settings import load_arguments
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_cli.simulate.names import ENDS_EARLY, NOT_SIMULATED
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.words import count, in_a_row

DEFAULT_SEEDS: Final = 5
# More combinations than these are counted before they are checked, which takes a while.
MOST_TO_CHECK: Final = 1000
AS_GIVEN: Final = "as given"
# What all runs of a sweep have in common, so that they can be compared, and what is no setting of one run.
_COMMON: Final = {"target", "held_seconds", "best", "max_seconds"}
_OF_THE_SWEEP: Final = {"sweep", "seeds", "seed", "max_runs", "recommend", "out", "from_run"}
SWEPT: Final = SimulateSettings.model_fields.keys() - NOT_SIMULATED - _COMMON - _OF_THE_SWEEP
OF_STRATEGIES: Final = frozenset(name for kind in STRATEGIES.values() for name in kind.model_fields)
Values = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Combination:
    """A value for each setting that is swept and that the strategy has, and the settings with them."""

    values: Values
    settings: SimulateSettings

    @property
    def label(self) -> str:
        """The values as they were given: "buffer_size=2 strategy=fedbuff"."""
        return " ".join(f"{name}={value}" for name, value in self.values.items()) or AS_GIVEN


@dataclass(frozen=True, slots=True)
class Grid:
    """The combinations and the seeds; `left_out` are the settings that a strategy, by its name, has not."""

    combinations: Sequence[Combination]
    seeds: Sequence[int]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of runs."""
        return len(self.combinations) * len(self.seeds)


def grid_of(settings: SimulateSettings) -> Grid:
    """Return the grid that these settings ask for, each combination checked.

    Raises ConfigError for a sweep that cannot be read, that has more runs than `max_runs`, or that has a
    combination which is refused; the error names the combination.
    """
    swept = parse_sweep(settings.sweep or "")
    if settings.sweep is not None and not swept:
        raise ConfigError("--sweep names no setting: leave it out, or give one with its values")
    settings.require_comparable()
    if settings.target:
        _require_one_time(settings, swept)
    first, how_many = settings.seed, settings.seeds or DEFAULT_SEEDS
    if (combinations := prod(map(len, swept.values()))) > MOST_TO_CHECK:
        _require_few(combinations, how_many, settings.max_runs)
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    given |= {"sweep": None, "seeds": None, "recommend": False}
    found: dict[tuple[tuple[str, str], ...], Combination] = {}
    left_out: dict[str, set[str]] = {}
    refused: list[str] = []
    for values in _products(swept):
        strategy = values.get("strategy", settings.strategy)
        lacks = _lacks(strategy)
        kept = {name: value for name, value in values.items() if name not in lacks}
        # At its default, a setting of another strategy is as good as not set.
        dropped = {name: SimulateSettings.model_fields[name].default for name in lacks & given.keys()}
        if names := lacks & (values.keys() | given.keys()):
            left_out.setdefault(strategy, set()).update(names)
        if tuple(kept.items()) in found:
            continue
        try:
            one = Combination(kept, load_arguments(SimulateSettings, {**given, **dropped, **kept}))
            one.settings.check()
            found[tuple(kept.items())] = one
        except ConfigError as error:
            refused.append(f"{Combination(kept, settings).label}: {error}")
    if refused:
        raise ConfigError(f"this sweep has combinations that are refused. {in_a_row(refused)}")
    grid = Grid(
        list(found.values()),
        range(first, first + how_many),
        {strategy: sorted(names) for strategy, names in left_out.items()},
    )
    _require_few(len(grid.combinations), how_many, settings.max_runs)
    return grid


def parse_sweep(text: str) -> dict[str, list[str]]:
    """Read "buffer_size=2,4 strategy=fedbuff,fedasync": names of settings, each with its values.

    Raises ConfigError, which says what is wrong with it, for anything else.
    """
    swept: dict[str, list[str]] = {}
    for word in text.split():
        written, equals, values = word.partition("=")
        name = written.lstrip("-").replace("-", "_")
        if not equals or not name:
            raise ConfigError(
                f'--sweep must read like "buffer_size=2,4,8 strategy=fedbuff,fedasync", and {word!r} has no '
                "setting before an ="
            )
        _require_swept(name)
        if name in swept:
            raise ConfigError(f"--sweep names {name} twice: give all of its values behind one =")
        swept[name] = values.split(",")
        if "" in swept[name]:
            raise ConfigError(f"--sweep has no value between two commas, or behind the =, in {word!r}")
        if len(set(swept[name])) < len(swept[name]):
            raise ConfigError(f"--sweep has a value twice in {word!r}")
    return swept


def _require_one_time(settings: SimulateSettings, swept: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError unless every run of a sweep has the same time to reach the target."""
    if not settings.max_seconds:
        raise ConfigError(
            "a sweep with a --target needs --max-seconds, so that every run has the same time to reach it"
        )
    for name in ENDS_EARLY:
        if name in swept or getattr(settings, name) is not None:
            raise ConfigError(
                f"a sweep with a --target gives every run --max-seconds to reach it, and {name} may end some "
                "sooner: leave it out"
            )


def _require_few(combinations: int, seeds: int, most: int) -> None:
    if combinations * seeds > most:
        raise ConfigError(
            f"this sweep has {count(combinations * seeds, 'run')} ({count(combinations, 'combination')}, "
            f"{count(seeds, 'seed')} each), and --max-runs allows {most:,}: sweep fewer values or seeds, or "
            "raise --max-runs"
        )


def _require_swept(name: str) -> None:
    if name in SWEPT:
        return
    if name in _COMMON:
        raise ConfigError(f"{name} cannot be swept: all runs of a sweep are measured in the same way")
    if name == "seed":
        raise ConfigError("seed cannot be swept: --seeds N plays each combination with N seeds")
    if name in SimulateSettings.model_fields:
        raise ConfigError(f"{name} cannot be swept: it says nothing about a single simulated run")
    close = get_close_matches(name, SWEPT, n=1)
    meant = f": did you mean {close[0]}?" if close else "; known are " + ", ".join(sorted(SWEPT))
    raise ConfigError(f"--sweep names the unknown setting {name!r}{meant}")


def _products(swept: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    for values in product(*swept.values()):
        yield dict(zip(swept, values, strict=True))


def _lacks(strategy: str) -> frozenset[str]:
    """Return the settings of strategies that this one has not; none for an unknown one, which is refused."""
    kind = STRATEGIES.get(strategy)
    return OF_STRATEGIES - kind.model_fields.keys() if kind else frozenset()
