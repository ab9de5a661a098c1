"""Reads the records of a federation's versions, without weights, from the stream F.records."""

from collections.abc import Iterator

from fluffle import model_stream
from fluffle.broker import Broker
from fluffle.topology import Topology
from fluffle_cli.watching.version import Version


def newest_record(
    broker: Broker, topology: Topology, *, patience_s: float = model_stream.NOTHING_THERE_S
) -> tuple[Version, int] | None:
    """Return the newest version and the size of its message in bytes, or None when there is none yet.

    `patience_s` is how long to wait for one where there may be none.
    """
    stored = model_stream.stored_record_at_hand(broker, topology, patience_s=patience_s)
    return (Version.of(stored.version), len(stored.body)) if stored else None


def all_records(broker: Broker, topology: Topology) -> Iterator[Version]:
    """Yield every version that the stream still holds, in the order of their publication."""
    return map(Version.of, model_stream.all_records(broker, topology))
