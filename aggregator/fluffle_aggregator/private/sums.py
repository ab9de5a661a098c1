"""The sums of a leader with differential privacy: their noise, and what each worker has spent. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from fluffle.privacy.adaptive_clip import next_clip, noisy_share
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

    def count_normal(self, rank: Rank) -> float:
        """Return the standard normal number of the noise in how many updates of that sum fit the clip."""

    def with_grid(self, grid: Grid) -> "Noise":
        """Return plain noise for sums of another grid."""


class NoNoise:
    """No noise at all, for a trial whose result nobody sees."""

    drawn = ""

    def add_next(self, rank: Rank, total: Steps) -> None:
        """See Noise."""

    def count_normal(self, rank: Rank) -> float:
        """See Noise."""
        del rank
        return 0.0

    def with_grid(self, grid: Grid) -> "NoNoise":
        """See Noise."""
        del grid
        return self


@dataclass(frozen=True, slots=True, eq=False)
class AddedNoise:
    """The noise that the aggregator adds to sums of clipped updates, which are divided by `buffer_size`."""

    noise: Noise
    grid: Grid
    buffer_size: int

    def empty_buffer(self) -> ClippedSum:
        """Return a buffer that holds no update yet."""
        return ClippedSum.empty(self.grid, self.buffer_size)

    def clip_after(self, buffer: ClippedSum, rank: Rank, count_std: float) -> float:
        """Return the adaptive clip of the sum that follows a buffer."""
        normal, updates = self.noise.count_normal(rank), buffer.totals.count
        return next_clip(
            self.grid.clip, noisy_share(buffer.fitting, updates, self.buffer_size, count_std, normal)
        )

    def with_clip(self, clip: float, plan: PrivacyPlan) -> "AddedNoise":
        """Return the noise of a sum with another clip."""
        grid = grid_of(plan, self.grid.size, clip)
        return AddedNoise(self.noise.with_grid(grid), grid, self.buffer_size)


class PrivateSums:
    """The sums of one leader: `state` is what has been released so far, with the newest step.

    Without `added` the workers have added the noise, and the aggregator only counts.
    """

    def __init__(self, plan: PrivacyPlan, state: PrivacyState, added: AddedNoise | None = None) -> None:
        self.plan = plan
        self.added = added
        self.state = replace(state, drawn=added.noise.drawn if added else "")
        self._greeted: set[str] = set()

    @property
    def is_local(self) -> bool:
        """Whether each update has all its noise, so that all that becomes of it is free."""
        return self.plan.mechanism == "local"

    def note_sum(self, buffer: object, rank: Rank, workers: Iterable[str]) -> None:
        """Add noise to the sum of which a version is made, with one update of each of these workers.

        From here on the updates are spent.
        """
        if self.added:
            if not isinstance(buffer, ClippedSum):
                raise TypeError(f"noise is for sums of clipped updates, not for {type(buffer).__name__}")
            self.added.noise.add_next(rank, buffer.steps)
            if self.plan.count_std is not None and buffer.totals.count:
                clip = self.added.clip_after(buffer, rank, self.plan.count_std)
                self.state, self.added = (
                    replace(self.state, clip=clip),
                    self.added.with_clip(clip, self.plan),
                )
        # Updates that have all their noise count when they come, in whatever sums they are.
        self._count(rank, () if self.is_local else workers)

    def skip(self, rank: Rank) -> None:
        """Let the sum of which this version would be made count, though it is never shown.

        Then less is shown than was promised to be bearable, and those who wait for it may go on. Its noise is
        drawn, since that of later sums takes back a part of it.
        """
        self.note_sum(self.added.empty_buffer() if self.added else None, rank, ())

    def _count(self, rank: Rank, workers: Iterable[str]) -> None:
        made = NoisySum(rank.term, rank.version, self.state.drawn)
        self.state = self.state.with_sum(made, tuple(workers), self.plan)

    def note_folded(self, worker: str, released: int) -> None:
        """Note an update that has all its noise, and says how many of them its worker has sent."""
        if self.is_local:
            self.note_released(worker, released or self.state.of(worker).updates + 1)

    def note_released(self, worker: str, updates: int) -> None:
        """Note that a worker has sent so many updates with its noise, whatever became of them."""
        self.state = self.state.with_released(worker, min(updates, self.plan.updates))

    @property
    def is_stuck(self) -> bool:
        """Whether nobody known may have an update in the next sum, though not all have sent theirs.

        So it is where fewer workers take part than `separation` sums in a row need.
        """
        left = self._left
        return bool(left) and all(self.state.steps_to_wait(worker, self.plan) for worker in left)

    def note_hello(self, name: str) -> None:
        """Note that somebody has connected, who may be a worker that trains its first update."""
        if name not in self.state.participations and len(self._greeted) < MAX_RUNS:
            self._greeted.add(name)

    @property
    def late(self) -> list[str]:
        """Who has connected and sent no update yet, once no sum comes about without one of them."""
        known = self.state.participations
        return sorted(self._greeted - known.keys()) if known and len(self._left) < self._fewest else []

    def forget(self, absent: Iterable[str]) -> None:
        """Wait no more for those who have left, or are no workers."""
        self._greeted -= set(absent)

    @property
    def why_over(self) -> str:
        """Why no sum can come about any more; empty while one can, or nobody has begun."""
        left = self._left
        if not self.state.participations or len(left) + len(self.late) >= self._fewest:
            return ""
        budget = f"the {self.plan.updates} updates that the privacy budget allows"
        if not left:
            return f"all workers have sent {budget}"
        return f"{', '.join(left)} alone cannot make a sum, and all others have sent {budget}"

    @property
    def _left(self) -> list[str]:
        """Who may send another update, of those who have sent one."""
        known = self.state.participations
        return sorted(worker for worker in known if not self.state.is_spent(worker, self.plan))

    @property
    def _fewest(self) -> int:
        """How many workers a sum has at least."""
        return self.plan.shares.honest if self.plan.shares else 1


def grid_of(plan: PrivacyPlan, size: int, clip: float) -> Grid:
    """Return the grid for the sums of a model of so many parameters, with this clip.

    Raises ValueError if noise hides all.
    """
    return Grid.for_noise(plan.std_at(clip), clip, size)
