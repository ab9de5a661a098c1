"""Sections of a page of results: a scene of `fluffle simulate`, its sides, and what is to be reached."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Final, Literal

from benchmarks.measuring import Spread

Given = Mapping[str, Any]
LAST: Final = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: the `values` of the metric at each evaluated version, and the `updates` that it contains.

    `held_s` and `held_updates` are infinite when the target did not hold, and without one. `staleness` is the
    mean over all updates, and `most_staleness` the greatest.
    """

    values: Sequence[float]
    updates: Sequence[int]
    held_s: float
    held_updates: float
    end_s: float
    staleness: float
    most_staleness: int

    @property
    def level(self) -> float:
        """The mean of the last evaluations."""
        return mean(self.values[-LAST:])

    @property
    def swing(self) -> float:
        """The greatest of the last evaluations minus the least."""
        return max(self.values[-LAST:]) - min(self.values[-LAST:])


Found = Mapping[str, Sequence[Outcome]]
Measure = Callable[[Outcome], float]


@dataclass(frozen=True, slots=True)
class Demand:
    """What the paper lets one expect: `compare` makes one figure for each seed."""

    what: str
    compare: Callable[[Found], Spread]
    sense: Literal["at least", "at most"]
    required: float


@dataclass(frozen=True, slots=True)
class Section:
    """Runs that are compared: `scene` is common to all sides, and each side has one setting or a grid.

    A setting is one of `fluffle simulate`; `data` in it are the task's data steps. `better` is what a grid is
    searched for: the setting for which it is least. `against` names a side: each row of the table then has
    the points by which its first measure is above that side's, seed by seed.
    """

    title: str
    scene: Given
    sides: Mapping[str, Sequence[Given]]
    measures: Mapping[str, Measure]
    demands: Sequence[Demand]
    better: Measure = field(default=lambda one: -one.level)
    against: str = ""


def times(measure: Measure, more: str, less: str) -> Callable[[Found], Spread]:
    """Return how many times as much one side has as the other, seed by seed; of two that never end, once."""

    def compare(found: Found) -> Spread:
        ratios = [measure(a) / measure(b) for a, b in zip(found[more], found[less], strict=True)]
        return Spread(tuple(1.0 if math.isnan(each) else each for each in ratios))

    return compare


def points(measure: Measure, more: str, less: str) -> Callable[[Found], Spread]:
    """Return by how much one side is above the other, seed by seed."""

    def compare(found: Found) -> Spread:
        pairs = zip(found[more], found[less], strict=True)
        return Spread(tuple(measure(a) - measure(b) for a, b in pairs))

    return compare


def level(one: Outcome) -> float:
    """Return the mean accuracy of the last evaluations, in percent."""
    return 100 * one.level


def swing(one: Outcome) -> float:
    """Return how far the last evaluations lie apart, in points."""
    return 100 * one.swing


def staleness(one: Outcome) -> float:
    """Return the mean staleness."""
    return one.staleness


def most_staleness(one: Outcome) -> float:
    """Return the greatest staleness."""
    return one.most_staleness


def held_s(one: Outcome) -> float:
    """Return the virtual seconds until the target held."""
    return one.held_s


def held_updates(one: Outcome) -> float:
    """Return the updates until the target held."""
    return one.held_updates


def end_s(one: Outcome) -> float:
    """Return the virtual seconds that the run took."""
    return one.end_s


def last(one: Outcome) -> float:
    """Return the last accuracy, in percent."""
    return 100 * one.values[-1]


def distance(one: Outcome) -> float:
    """Return the last distance from the optimum."""
    return one.values[-1]


def grid(name: str, values: Sequence[object], **others: object) -> list[Given]:
    """Return a setting for each value."""
    return [{**others, name: value} for value in values]
