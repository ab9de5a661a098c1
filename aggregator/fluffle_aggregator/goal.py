"""When the federation has reached what it was started for, and which version is the best so far. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fluffle.errors import ConfigError
from fluffle.record import Evaluation

_TARGET = re.compile(
    r"\s*(?:(?P<metric>[A-Za-z_]\w*)\s*(?P<relation>>=|<=))?\s*(?P<bound>[-+]?[\d.]+(?:e-?\d+)?)\s*"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that a metric of an evaluation must reach."""

    metric: str
    relation: str
    bound: float

    def is_met(self, metrics: Mapping[str, float]) -> bool:
        """Tell whether these metrics reach the bound; a metric that is missing does not."""
        if self.metric not in metrics:
            return False
        value = metrics[self.metric]
        return value >= self.bound if self.relation == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.metric}{self.relation}{self.bound:g}"


def parse_target(text: str) -> Target:
    """Read "accuracy>=0.95", "mae<=45" or "0.95", which means accuracy; ConfigError for anything else."""
    found = _TARGET.fullmatch(text)
    try:
        if found:
            return Target(found["metric"] or "accuracy", found["relation"] or ">=", float(found["bound"]))
    except ValueError:
        pass  # two dots in the number
    raise ConfigError(
        f"FLUFFLE_TARGET must read like 0.95, accuracy>=0.95 or mae<=45, not {text!r}: "
        "a metric of the task's evaluation, >= or <=, and a number"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What ends the federation: whichever comes first; None never does."""

    target: Target | None = None
    target_hold: int = 3
    max_versions: int | None = None
    max_updates: int | None = None
    max_seconds: float | None = None

    def reached(self, *, version: int, updates: int, elapsed_s: float, target_held: int) -> str:
        """Return why the federation is over in words, or an empty string while it is not."""
        if self.target and target_held >= self.target_hold:
            return f"{self.target} held for {target_held} evaluations"
        if self.max_versions is not None and version >= self.max_versions:
            return f"{version} versions were made"
        if self.max_updates is not None and updates >= self.max_updates:
            return f"{updates} updates were applied"
        if self.max_seconds is not None and elapsed_s >= self.max_seconds:
            return f"{elapsed_s:.0f} seconds have passed"
        return ""

    def held(self, before: int, metrics: Mapping[str, float]) -> int:
        """Return for how many evaluations in a row the target has held, after one more."""
        return before + 1 if self.target and self.target.is_met(metrics) else 0

    def better(self, best: Evaluation | None, new: Evaluation) -> Evaluation:
        """Return the better evaluation: by the target's metric, else by accuracy, else by loss.

        Of two equal ones the earlier stays.
        """
        if best is None:
            return new
        metric, higher_is_better = "accuracy", True
        if self.target:
            metric, higher_is_better = self.target.metric, self.target.relation == ">="
        elif metric not in {*best.metrics, *new.metrics}:
            metric, higher_is_better = "loss", False
        if metric not in new.metrics:
            return best
        if metric not in best.metrics:
            return new
        gain = new.metrics[metric] - best.metrics[metric]
        return new if (gain > 0 if higher_is_better else gain < 0) else best
