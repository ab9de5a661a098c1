"""What was seen of a federation: its evaluations, and each worker's rounds. Pure, of bounded size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fluffle_cli.series import Series, the_later

# More workers than any federation has. Beyond it, the one that was silent for longest is forgotten.
MOST_WORKERS: Final = 10_000
MOST_LOSSES: Final = 24
MOST_VERSIONS: Final = 2048
# When updates of two runs of one worker take turns this many times, two processes send under its name. (Once
# happens when a late update arrives of a process that was started again.)
RETURNS_OF_A_RUN: Final = 2
# After this many rounds of one run in a row, the other process is gone.
ROUNDS_ALONE: Final = 20


@dataclass(frozen=True, slots=True)
class EvaluatedVersion:
    """The metrics of one version, and the seconds of training before it was committed."""

    version: int
    seconds: float
    metrics: Mapping[str, float]


class Rounds:
    """One worker's rounds: their training losses, how long the last one took, and whether two processes send.

    There are at most MOST_LOSSES losses, each the mean of equally many rounds.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._losses: Series[float] = Series(mean_of_both, most=MOST_LOSSES)
        self._runs = ("", "")
        self._returns = 0
        self._alone = 0

    @property
    def losses(self) -> Sequence[float]:
        """The losses in their order; some may be NaN."""
        return self._losses.points()

    @property
    def is_of_two(self) -> bool:
        """Whether two runs take turns: two processes have this worker's name."""
        return self._returns >= RETURNS_OF_A_RUN and self._alone < ROUNDS_ALONE

    def add(self, run: str, loss: float | None, seconds: float) -> None:
        """Take in one more round; `loss` is None where the task reports none."""
        self.seconds = seconds or self.seconds
        earlier, current = self._runs
        self._alone += 1
        if run != current:
            self._returns = self._returns + 1 if run == earlier else 0
            self._runs = (current, run)
            self._alone = 0
        if loss is not None:
            self._losses.add(loss)


class History:
    """What was seen of a federation so far."""

    def __init__(self) -> None:
        self._evaluated: Series[EvaluatedVersion] = Series(the_later)
        self._seconds: dict[int, float] = {}
        self._rounds: dict[str, Rounds] = {}

    @property
    def evaluations(self) -> Sequence[EvaluatedVersion]:
        """The evaluated versions, in their order."""
        return self._evaluated.points()

    @property
    def rounds(self) -> Mapping[str, Rounds]:
        """The rounds of each worker by its name."""
        return self._rounds

    def seconds_of(self, version: int) -> float | None:
        """Return the seconds of training before a version was committed, if that is known."""
        return self._seconds.get(version)

    def note_seconds(self, version: int, seconds: float) -> None:
        """Note the seconds of training before a version was committed."""
        self._seconds[version] = seconds
        if len(self._seconds) > MOST_VERSIONS:
            del self._seconds[next(iter(self._seconds))]

    def note_evaluation(self, version: int, metrics: Mapping[str, float]) -> None:
        """Take in an evaluation, if it is of a newer version than those before."""
        points = self._evaluated.points()
        if points and version <= points[-1].version:
            return
        newest = next(reversed(self._seconds.values()), 0.0)
        seconds = self._seconds.get(version, newest)
        self._evaluated.add(EvaluatedVersion(version, seconds, dict(metrics)))

    def note_round(self, worker: str, run: str, loss: float | None, seconds: float = 0.0) -> None:
        """Take in one round of a worker."""
        rounds = self._rounds.pop(worker, None) or Rounds()
        self._rounds[worker] = rounds
        if len(self._rounds) > MOST_WORKERS:
            del self._rounds[next(iter(self._rounds))]
        rounds.add(run, loss, seconds)


def mean_of_both(earlier: float, later: float) -> float:
    """Merge two losses of a curve; one that is not finite stays visible."""
    return (earlier + later) / 2
