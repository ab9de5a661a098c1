"""The sums of a leader with differential privacy: their noise, and what each worker has spent. Pure."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from fluffle.privacy.grid import Grid, Steps
from fluffle.privacy.plan import NoisySum, PrivacyPlan, PrivacyState
from fluffle.record import Rank
from fluffle.update import MAX_RUNS
from fluffle_aggregator.private.clipped_sum import ClippedSum


class Noise(Protocol):
    """The noise of one sum after the other; what a leader draws at random is in it."""

    @property
    def drawn(self) -> str:
        """What this leader has drawn when it began, in hexadecimal."""

    def add_next(self, rank: Rank, total: Steps) -> None:
        """Add the noise of the sum of which the version of this rank is made, once and never again."""


class NoNoise:
    """No noise at all, for a trial whose result nobody sees."""

    drawn = ""

    def add_next(self, rank: Rank, total: Steps) -> None:
        """See Noise."""


class PrivateSums:
    """The sums of one leader: `state` is what has been released so far, with the newest step."""

    def __init__(
        self, plan: PrivacyPlan, state: PrivacyState, noise: Noise, grid: Grid, *, buffer_size: int
    ) -> None:
        self.plan = plan
        self.state = replace(state, drawn=noise.drawn)
        self._noise = noise
        self._grid = grid
        self._buffer_size = buffer_size
        self._greeted: set[str] = set()

    def empty_buffer(self) -> ClippedSum:
        """Return a buffer that holds no update yet."""
        return ClippedSum.empty(self._grid, self._buffer_size)

    def add_noise(self, buffer: object, rank: Rank, workers: Iterable[str]) -> None:
        """Add noise to the sum of which a version is made, with one update of each of these workers.

        From here on the updates are spent.
        """
        if not isinstance(buffer, ClippedSum):
            raise TypeError(f"noise is for sums of clipped updates, not for {type(buffer).__name__}")
        self._noise.add_next(rank, buffer.steps)
        made = NoisySum(rank.term, rank.version, self._noise.drawn)
        self.state = self.state.with_sum(made, tuple(workers), self.plan)

    def skip(self, rank: Rank) -> None:
        """Let the sum of which this version would be made count, though it is never shown.

        Then less is shown than was promised to be bearable, and those who wait for it may go on. Its noise is
        drawn, since that of later sums takes back a part of it.
        """
        self._noise.add_next(rank, self.empty_buffer().steps)
        self.state = self.state.with_sum(NoisySum(rank.term, rank.version, self._noise.drawn), (), self.plan)

    @property
    def is_stuck(self) -> bool:
        """Whether nobody known may have an update in the next sum, though not all have sent theirs.

        So it is where fewer workers take part than `separation` sums in a row need.
        """
        known, state, plan = self.state.participations, self.state, self.plan
        unspent = [worker for worker in known if not state.is_spent(worker, plan)]
        return bool(unspent) and all(state.steps_to_wait(worker, plan) for worker in unspent)

    def note_hello(self, name: str) -> None:
        """Note that somebody has connected, who may be a worker that trains its first update."""
        if name not in self.state.participations and len(self._greeted) < MAX_RUNS:
            self._greeted.add(name)

    @property
    def late(self) -> list[str]:
        """Who has connected and sent no update yet, once all others have sent all of theirs."""
        if not self.state.are_all_spent(self.plan):
            return []
        return sorted(self._greeted - self.state.participations.keys())

    def forget(self, absent: Iterable[str]) -> None:
        """Wait no more for those who have left, or are no workers."""
        self._greeted -= set(absent)

    @property
    def why_over(self) -> str:
        """Why nobody can send an update any more; empty while somebody can, or nobody has begun."""
        if not self.state.are_all_spent(self.plan) or self.late:
            return ""
        return f"all workers have sent the {self.plan.updates} updates that the privacy budget allows"


def grid_of(plan: PrivacyPlan, size: int) -> Grid:
    """Return the grid for the sums of a model of so many parameters. Raises ValueError if noise hides all."""
    return Grid.for_noise(plan.std, plan.clip, size)
