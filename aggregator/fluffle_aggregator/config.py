"""What an aggregator is told when it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fluffle.event_sink import NULL_SINK, EventSink
from fluffle.model import Layout
from fluffle.record import ModelVersion
from fluffle.topology import Topology
from fluffle_aggregator.admission import Policy
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.head import Head

POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSchedule:
    """When to commit: after `every` steps, or `after_s` seconds after the last commit if there was a step.

    What waits in a buffer that does not fill is flushed after `buffer_timeout_s`, far below the broker's
    consumer timeout (30 minutes).
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorConfig:
    """All that an aggregator is told when it starts.

    `downlink_codec` is how versions travel to those who read the stream; the head has each as it is.
    `look` is called often, and raises LayoutError once it is known that the settings are for another model.
    `compare` begins to compare the settings' model with a running federation's, for a standby that does not
    lead it yet; None when the settings name no model.
    `try_out` takes in a message where it does no harm, and says how that ended; empty is well.
    """

    name: str
    topology: Topology
    policy: Policy
    commit_schedule: CommitSchedule
    prefetch: int
    downlink_codec: str = "float32"
    first_version: Callable[[], ModelVersion]
    continue_from: Callable[[Head], GlobalModel]
    try_out: Callable[[Layout, bytes], str]
    look: Callable[[], None] = lambda: None
    compare: Callable[[Layout], None] | None = None
    event_sink: EventSink = NULL_SINK
