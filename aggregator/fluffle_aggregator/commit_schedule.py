"""When the leader commits. Pure."""

from dataclasses import dataclass

from fluffle_aggregator.strategies.strategy import Strategy

# How long to wait for a message before looking at the clock again.
POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSchedule:
    """When to commit: after `every` steps, or `after_s` seconds after the last commit if there was a step.

    A buffer that does not fill is used as it is after `buffer_timeout_s`, far below the broker's consumer
    timeout (30 minutes).
    """

    every: int = 1
    after_s: float | None = None
    buffer_timeout_s: float = 60.0

    def is_due(self, steps: int, *, since_commit_s: float) -> bool:
        """Tell whether the steps made since the last commit are to be published now."""
        if steps == 0:
            return False
        return steps >= self.every or (self.after_s is not None and since_commit_s >= self.after_s)

    @property
    def patience_s(self) -> float:
        """How long to wait for a message before looking at the clock again."""
        return min(POLL_S, self.buffer_timeout_s, POLL_S if self.after_s is None else self.after_s)


def prefetch_of(strategy: Strategy, schedule: CommitSchedule, *, is_secure: bool = False) -> int:
    """Return how many messages a leader may have: what a commit holds, two reports, one on its way.

    With secure aggregation, updates that are for the next buffer wait beside those of this one.
    """
    return strategy.buffer_size * (2 if is_secure else schedule.every) + 3
