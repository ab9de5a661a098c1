"""What was seen of a federation: its evaluations, and each worker's rounds. Pure, of bounded size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

# Points of a curve: about as many as a screen has room for.
MOST_POINTS: Final = 512
# More workers than any federation has. Beyond it, the one that was silent for longest is forgotten.
MOST_WORKERS: Final = 10_000
MOST_LOSSES: Final = 24
MOST_VERSIONS: Final = 2048
# When updates of two runs of one worker take turns this many times, two processes send under its name. (Once
# happens when a late update arrives of a process that was started again.)
RETURNS_OF_A_RUN: Final = 2
# After this many rounds of one run in a row, the other process is gone.
ROUNDS_ALONE: Final = 20

P = TypeVar("P")


class Series(Generic[P]):
    """A curve of at most `most` points, an even number: when it is full, neighbouring points are merged."""

    def __init__(self, merge: Callable[[P, P], P], *, most: int = MOST_POINTS) -> None:
        """Merge an earlier and a later point with `merge`."""
        # Each point is merged from equally many, but for the last one, which may have room for more.
        self.points: list[P] = []
        self._merge = merge
        self._most = most
        self._each, self._room = 1, 0

    def add(self, point: P) -> None:
        """Take in the next point."""
        if self._room:
            self.points[-1] = self._merge(self.points[-1], point)
            self._room -= 1
            return
        if len(self.points) == self._most:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [self._merge(earlier, later) for earlier, later in pairs]
            self._each *= 2
        self.points.append(point)
        self._room = self._each - 1


def the_later(_earlier: P, later: P) -> P:
    """Merge two points by keeping the later one."""
    return later


@dataclass(frozen=True, slots=True)
class EvaluatedVersion:
    """The metrics of one version, and the seconds of training before it was committed."""

    version: int
    seconds: float
    metrics: Mapping[str, float]


class Rounds:
    """One worker's rounds: their losses, what the last one took, and whether two processes send.

    `steps` and `batch_size` are those of the last round in a record; the size is None where it is unknown.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.steps: int | None = None
        self.batch_size: int | None = None
        # A mean with a loss that is not finite is not finite either: it stays visible.
        self._losses = Series[float](lambda earlier, later: (earlier + later) / 2, most=MOST_LOSSES)
        self._runs = ("", "")
        self._returns = self._alone = 0

    @property
    def losses(self) -> Sequence[float]:
        """At most MOST_LOSSES losses, each the mean of equally many rounds; some may be NaN."""
        return self._losses.points

    @property
    def is_of_two(self) -> bool:
        """Whether two runs take turns: two processes have this worker's name."""
        return self._returns >= RETURNS_OF_A_RUN and self._alone < ROUNDS_ALONE

    def add(self, run: str, loss: float | None, seconds: float, steps: int = 0, batch_size: int = 0) -> None:
        """Take in one more round; `loss` is None where the task reports none, and steps of 0 are unknown."""
        self.seconds = seconds or self.seconds
        if steps:
            self.steps, self.batch_size = steps, batch_size or None
        earlier, current = self._runs
        self._alone += 1
        if run != current:
            self._returns = self._returns + 1 if run == earlier else 0
            self._runs = (current, run)
            self._alone = 0
        if loss is not None:
            self._losses.add(loss)


class History:
    """What was seen of a federation so far; `rounds` are those of each worker by its name."""

    def __init__(self) -> None:
        self.rounds: dict[str, Rounds] = {}
        self._evaluated = Series[EvaluatedVersion](the_later)
        self._seconds: dict[int, float] = {}

    @property
    def evaluations(self) -> Sequence[EvaluatedVersion]:
        """The evaluated versions, in their order."""
        return self._evaluated.points

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
        if self.evaluations and version <= self.evaluations[-1].version:
            return
        newest = next(reversed(self._seconds.values()), 0.0)
        seconds = self._seconds.get(version, newest)
        self._evaluated.add(EvaluatedVersion(version, seconds, dict(metrics)))

    def forget_evaluations_after(self, version: int) -> None:
        """Drop the evaluations of later versions, which are not in the history of this one."""
        kept = [each for each in self.evaluations if each.version <= version]
        self._evaluated = Series(the_later)
        for each in kept:
            self._evaluated.add(each)

    def note_round(
        self,
        worker: str,
        run: str,
        loss: float | None,
        seconds: float = 0.0,
        *,
        steps: int = 0,
        batch_size: int = 0,
    ) -> None:
        """Take in one round of a worker."""
        rounds = self.rounds.pop(worker, None) or Rounds()
        self.rounds[worker] = rounds
        if len(self.rounds) > MOST_WORKERS:
            del self.rounds[next(iter(self.rounds))]
        rounds.add(run, loss, seconds, steps, batch_size)
