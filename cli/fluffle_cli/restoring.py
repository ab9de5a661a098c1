"""Restore a version to the broker, so that the next aggregator continues from it."""

from dataclasses import replace

from fluffle.broker import Broker
from fluffle.errors import ConfigError, TopologyMissing
from fluffle.model_stream import SLOW_LINK_S, StoredVersion, stored_at_hand
from fluffle.record import ModelVersion, Rank
from fluffle.topology import Topology
from fluffle.wire import decode_record, encode_version
from fluffle_aggregator.head import publish_record
from fluffle_cli.unconsumed import is_unconsumed

# More takeovers than there can have been between the writing of a file and the loss of the broker.
TERMS_AHEAD = 1000


def put_back(broker: Broker, topology: Topology, stored: StoredVersion) -> Rank:
    """Make a stored version the one that the next leader starts from, and return its rank on the broker.

    Raises ConfigError, and changes nothing, when it would take the federation back, when it is another
    federation's, or when an aggregator is at work.
    """
    version = stored.version
    if version.federation != topology.federation:
        raise ConfigError(
            f"the file holds a version of {version.federation!r}, not of {topology.federation!r}: "
            f"give --federation {version.federation} to restore that one"
        )
    patience_s = SLOW_LINK_S if _has_stream(broker, topology) else 0.0
    broker.declare(topology)
    if not is_unconsumed(broker, topology.updates.name):
        raise ConfigError(
            f"an aggregator of {topology.federation!r} is at work: it would not notice, and push the "
            "restored version out of the head queue. Stop every aggregator first"
        )
    in_stream = stored_at_hand(broker, topology, patience_s=patience_s)
    newest, terms_in_head = ranks_in_head(broker, topology)
    if newest and newest >= version.rank:
        raise ConfigError(
            f"the queue {topology.head.name} holds version {newest}, and the file "
            f"{version.rank}: there is nothing to restore, start an aggregator"
        )
    if in_stream and in_stream.version.rank > version.rank:
        raise ConfigError(
            f"the stream {topology.models.name} holds version {in_stream.version.rank}, newer than the "
            f"file's {version.rank}: export that one, and restore it. To go back on purpose, begin another "
            "federation with --initial-model"
        )
    if in_stream and in_stream.digest == stored.digest:
        exact = next((one for one in (stored, in_stream) if not one.version.copy_of), None)
        if exact:
            broker.publish(topology.head_in.name, "", exact.body, {"kind": "version"})
            publish_record(broker, topology, exact.body)
            return version.rank
    elif in_stream and in_stream.version.rank == version.rank:
        raise ConfigError(
            f"the stream {topology.models.name} holds another version {version.rank} than the file: another "
            "federation of the same name made it. Give one of them another name"
        )
    # Workers may have seen versions that came after the file, and a rounded copy is never taken for the
    # version itself. So this becomes a record of its own, whose term is above all of them.
    seen = [version.term, *terms_in_head]
    term = max([*seen, in_stream.version.term] if in_stream else seen) + TERMS_AHEAD
    terms = (*version.terms, Rank(term, version.version))
    above = replace(
        version, term=term, terms=terms, parent=stored.digest, folded=(), codec="float32", copy_of=""
    )
    body = encode_version(above)
    broker.publish(topology.versions_in.name, "", body, {"kind": "version"})
    publish_record(broker, topology, body)
    return above.rank


def ranks_in_head(broker: Broker, topology: Topology) -> tuple[Rank | None, list[int]]:
    """Return the rank of the head's newest version, and every term that somebody published under."""
    versions, terms = [], []
    with broker.peek(topology.head.name) as bodies:
        for record in map(decode_record, bodies):
            terms.append(record.rank.term)
            if isinstance(record, ModelVersion):
                versions.append(record.rank)
    return max(versions, default=None), terms


def _has_stream(broker: Broker, topology: Topology) -> bool:
    try:
        broker.state(topology.models.name)
    except TopologyMissing:
        return False
    return True
