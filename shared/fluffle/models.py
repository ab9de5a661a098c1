"""Reading versions of the model from the federation's stream, as workers, evaluators and people do."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from fluffle.broker import Broker, StreamReader
from fluffle.record import ModelVersion, Rank
from fluffle.topology import Topology
from fluffle.wire import decode_version

POLL_S = 0.5
# "last" means the last chunk of the stream, which may hold several versions and has no mark of its end.
QUIET_S = 0.05
SLOW_LINK_S = 20.0


def newest_version(
    broker: Broker, topology: Topology, *, stop: threading.Event, newer_than: Rank | None = None
) -> ModelVersion | None:
    """Return the newest version, and wait for one that is newer than `newer_than` if need be.

    Versions in between are not read. None when `stop` is set first.
    """
    with broker.read_stream(topology.models.name, offset="last") as reader:
        while not stop.is_set():
            newest = _newest_at_hand(reader, POLL_S)
            if newest and (newer_than is None or newest.rank > newer_than):
                return newest
    return None


def version_at_hand(broker: Broker, topology: Topology) -> ModelVersion | None:
    """Return the newest version that is there now, or None when the stream is empty.

    For whoever may look at the head queue too.
    """
    # Nothing tells how much is in a stream. Where there is a head there should be a model, however slowly a
    # large one comes over the network.
    patience_s = SLOW_LINK_S if broker.state(topology.head.name).messages else 2 * POLL_S
    with broker.read_stream(topology.models.name, offset="last") as reader:
        return _newest_at_hand(reader, patience_s)


def all_versions(broker: Broker, topology: Topology) -> Iterator[ModelVersion]:
    """Yield every version that the stream still holds, in the order of their publication.

    Versions of a term lower than one that was seen before come from an aggregator that has lost the lead:
    they are left out. For whoever may look at the head queue too.
    """
    newest = version_at_hand(broker, topology)
    highest_term = 0
    with broker.read_stream(topology.models.name, offset="first") as reader:
        while newest and (body := reader.next_body(SLOW_LINK_S)) is not None:
            version = decode_version(body)
            if version.term >= highest_term:
                highest_term = version.term
                yield version
            if version.rank >= newest.rank:
                return


def _newest_at_hand(reader: StreamReader, timeout_s: float) -> ModelVersion | None:
    newest: ModelVersion | None = None
    body = reader.next_body(timeout_s)
    while body is not None:
        version = decode_version(body)
        if newest is None or version.rank > newest.rank:
            newest = version
        body = reader.next_body(QUIET_S)
    return newest
