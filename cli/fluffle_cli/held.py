"""When a target began to hold, by time: the same measure however often a strategy makes versions. Pure.

Three evaluations in a row are half a second for a strategy that makes six versions a second, and six seconds
for synchronous rounds of two seconds. So a target has held when every evaluation within some seconds reaches
it. A version counts until the next one is evaluated: rounds that take longer than that need one evaluation.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Final, Self

from fluffle_aggregator.goal import Goal, Target

# Every evaluation within so many seconds reaches the target, unless something else is said.
HOLD_S: Final = 3.0
# Times are recorded to a millisecond.
RESOLUTION_S: Final = 1e-3


def held_from(
    curve: Iterable[tuple[float, float]], target: Target, *, hold_s: float, until_s: float
) -> float | None:
    """Return the time t of the first evaluated version such that the target held from t to t + hold_s.

    `curve` has the seconds at which each evaluated version was made, in ascending order, and its value of the
    target's metric. The target holds in a span of time when every evaluation in it reaches it. A version that
    is made at its very end is not in it: that one ends the federation, maybe of a buffer that is not full.
    `until_s` is how long the run was watched: a span that ends later has not been seen to hold.
    """
    began: float | None = None
    for seconds, value in curve:
        if began is not None and seconds >= began + hold_s - RESOLUTION_S:
            return began
        if not target.is_met({target.metric: value}):
            began = None
        elif began is None:
            began = seconds
    return began if began is not None and began + hold_s <= until_s + RESOLUTION_S else None


@dataclass(frozen=True, kw_only=True)
class GoalByTime(Goal):
    """A goal whose target ends the federation when every evaluation within `hold_s` seconds reaches it.

    It remembers when the evaluations began to reach the target, so that it serves one federation. Where
    evaluations come late, it waits `patience_s` more, so that those of all versions in the span have come.
    """

    hold_s: float
    patience_s: float = 0.0
    _began: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, goal: Goal, *, hold_s: float, patience_s: float = 0.0) -> Self:
        """Return a goal whose target holds for seconds instead of evaluations, and with the other ends."""
        given = {each.name: getattr(goal, each.name) for each in fields(Goal)}
        return cls(**given, hold_s=hold_s, patience_s=patience_s)

    def reached(
        self, *, version: int, updates: int, training_s: float, target_held: int, not_finite_held: int = 0
    ) -> str:
        """See Goal; to be asked after each evaluation, and whenever time has passed."""
        if target_held == 0:
            self._began.clear()
        elif not self._began:
            self._began.append(training_s)
        if self._began and training_s - self._began[0] >= self.hold_s + self.patience_s:
            return f"{self.target} held for {self.hold_s:g} s"
        return super().reached(
            version=version,
            updates=updates,
            training_s=training_s,
            target_held=0,
            not_finite_held=not_finite_held,
        )
