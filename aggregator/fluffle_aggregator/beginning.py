"""Publish version 0 of a federation that is new or was reset."""

from dataclasses import replace

from fluffle.broker import Broker
from fluffle.logs import get_logger
from fluffle.record import Rank
from fluffle.wire import require_readable_version
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.head import Head, StreamHealth, claimed_terms, publish_version

log = get_logger(__name__)


def begin_federation(config: AggregatorConfig, broker: Broker, stream_health: StreamHealth) -> Head:
    """Publish version 0, in a term above every one that `fluffle federation reset` has claimed.

    Raises TopologyMissing when nothing is claimed, and this process has seen versions before: then the
    broker has lost them.
    """
    claimed = claimed_terms(broker, config.topology)
    if not claimed:
        stream_health.require_new_federation(config.topology)
    term = max(claimed, default=0) + 1
    first = replace(config.first_version(), term=term, terms=(Rank(term, 0),))
    require_readable_version(first)
    digest = publish_version(broker, config.topology, first, config.downlink_codec)
    log.info("new federation", version=0, term=term, parameters=first.layout.size)
    return Head(first, {}, digest, term - 1, messages=len(claimed) + 1)
