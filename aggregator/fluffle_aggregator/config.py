"""The configuration of an aggregator, made of its settings when it starts."""

from collections.abc import Callable
from dataclasses import dataclass

from fluffle.broker import Delivery
from fluffle.event_sink import NULL_SINK, EventSink
from fluffle.record import ModelVersion
from fluffle.secure.committee import Committee
from fluffle.topology import Topology
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.head import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorConfig:
    """The configuration of an aggregator.

    `prefetch` is how many messages it holds unacknowledged at most. `downlink_codec` is how versions travel
    to those who read the stream; the head has each one exactly. `require_same_model` is called often, and
    raises LayoutError once it is known that the settings are for another model. `compare` begins to compare
    the settings' model, promise and keys with those of a running federation's record, for a standby that does
    not lead it yet, and may raise ConfigError or LayoutError. `try_out` takes in a message where it does no
    harm, and returns how that ended; an empty string is well. With secure aggregation, `committee` returns
    the helpers, and `look_at_registry` is called often, and raises ConnectionLost when there is another
    registry.
    """

    name: str
    topology: Topology
    limits: Limits
    commit_schedule: CommitSchedule
    prefetch: int
    downlink_codec: str = "float32"
    first_version: Callable[[], ModelVersion]
    continue_from: Callable[[Head], GlobalModel]
    try_out: Callable[[GlobalModel, Delivery], str]
    require_same_model: Callable[[], None] = lambda: None
    compare: Callable[[ModelVersion], None] | None = None
    event_sink: EventSink = NULL_SINK
    committee: Callable[[], Committee] | None = None
    look_at_registry: Callable[[], None] = lambda: None
