"""How fast a worker trains, from the times of its minibatches. Pure: seconds come in as arguments."""

import math
from dataclasses import dataclass, replace
from typing import Final

# The newest of so many rounds say how fast a worker is.
ROUNDS = 3
# A round that is so many times slower than usual is believed at once, since the next one would be as slow.
SLOWER_AT_ONCE = 2.0
# A call that takes so many times as long as the others of its round is a compilation or a pause.
OUTLIER = 4.0


class StepTimes:
    """Times the calls of one round, each of one or more minibatches, as the task reports them.

    In a round that is the first of its kind, the first call takes the time to compile the training step. In
    every round it takes what the round needs to begin. So the first call counts only where it is the only one
    and nothing was compiled.
    """

    def __init__(self, began_s: float, *, is_first: bool) -> None:
        self._began_s = began_s
        self._is_first = is_first
        self._first: tuple[int, float] | None = None
        self._last = (0, began_s)
        self._calls = 0
        self._slowest = (0, 0.0)

    @property
    def steps(self) -> int:
        """The minibatches that were trained so far."""
        return self._last[0]

    def note(self, done: int, at_s: float) -> None:
        """Take in that so many minibatches of the round are trained by now."""
        steps, seconds = done - self._last[0], at_s - self._last[1]
        if steps < 1:
            return
        self._calls += 1
        self._last = done, at_s
        if self._first is None:
            self._first = self._last
        elif seconds * self._slowest[0] >= self._slowest[1] * steps:
            self._slowest = steps, seconds

    def step_s(self) -> float | None:
        """Return the seconds of one minibatch; None where nothing can be said of them."""
        if self._first is None:
            return None
        if self._calls == 1:
            return None if self._is_first else (self._last[1] - self._began_s) / self._last[0]
        steps, seconds = self._last[0] - self._first[0], self._last[1] - self._first[1]
        others, their_s = steps - self._slowest[0], seconds - self._slowest[1]
        if others > 0 and self._slowest[1] * others > OUTLIER * their_s * self._slowest[0]:
            steps, seconds = others, their_s
        return seconds / steps

    def rest_s(self, ended_s: float) -> float | None:
        """Return the seconds of a round that its minibatches do not explain; None for one that is a first."""
        step_s = self.step_s()
        if step_s is None or self._is_first:
            return None
        return max(0.0, ended_s - self._began_s - step_s * self.steps)


@dataclass(frozen=True, slots=True)
class Speed:
    """What the last rounds took: seconds for one minibatch, and for the rest of the round, the newest last.

    `is_lost` says that the last round gave no number that can be computed with.
    """

    step_s: tuple[float, ...] = ()
    rest_s: tuple[float, ...] = ()
    is_lost: bool = False

    def after(self, step_s: float | None, rest_s: float | None = None) -> "Speed":
        """Return the speed after one more round; None says that the round was no measurement.

        A number that is NaN, infinite or below 0, or 0 seconds for a minibatch, leaves the others as they
        are.
        """
        if step_s is None:
            return self
        if not (math.isfinite(step_s) and step_s > 0):
            return Speed(self.step_s, self.rest_s, is_lost=True)
        rests = self.rest_s
        if rest_s is not None and math.isfinite(rest_s) and rest_s >= 0:
            rests = (*rests, rest_s)[-ROUNDS:]
        return Speed((*self.step_s, step_s)[-ROUNDS:], rests)

    def times(self, factor: float) -> "Speed":
        """Return the speed of a worker whose minibatches take so many times as long, as far as is known."""
        return replace(self, step_s=(factor * self.step_s[-1],) if self.step_s else ())


UNKNOWN: Final = Speed()


def usual(newest_last: tuple[float, ...]) -> float:
    """Return what the next round is to be expected to take: the median, or the newest if far above it.

    One fast round in three changes nothing, two do. A slow one counts at once: what it takes is lost time.
    """
    median = sorted(newest_last)[len(newest_last) // 2]
    return newest_last[-1] if newest_last[-1] > SLOWER_AT_ONCE * median else median
