"""Restore a version to the broker, or begin anew, so that the next aggregator continues above all terms."""

import time
from contextlib import suppress
from dataclasses import replace

from fluffle.broker import Broker
from fluffle.errors import ConfigError, TopologyMissing
from fluffle.model_stream import SLOW_LINK_S, StoredVersion, stored_at_hand, version_at_hand
from fluffle.record import ModelVersion, MomentsRecord, Rank
from fluffle.record_wire import decode_record, encode_version, moments_pieces
from fluffle.topology import Topology
from fluffle_aggregator.head import publish_record

# More takeovers than there can have been between the writing of a file and the loss of the broker.
TERMS_AHEAD = 1000
# RabbitMQ takes a moment to notice that a consumer has left.
LEAVING_S = 5.0
POLL_S = 0.2


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
    patience_s = 0.0
    with suppress(TopologyMissing):
        broker.state(topology.models.name)
        patience_s = SLOW_LINK_S
    broker.declare(topology)
    if not is_unconsumed(broker, topology.updates.name):
        raise ConfigError(
            f"an aggregator of {topology.federation!r} is at work: it would not notice, and push the "
            "restored version out of the head queue. Stop every aggregator first"
        )
    in_stream = stored_at_hand(broker, topology, patience_s=patience_s)
    newest, terms = ranks_in_head(broker, topology)
    if newest and newest >= version.rank:
        raise ConfigError(
            f"the queue {topology.head.name} holds version {newest}, and the file "
            f"{version.rank}: there is nothing to restore, start an aggregator"
        )
    exact = None
    if in_stream:
        found = in_stream.version
        if found.rank > version.rank:
            raise ConfigError(
                f"the stream {topology.models.name} holds version {found.rank}, newer than the file's "
                f"{version.rank}: export that one, and restore it. To go back on purpose, begin another "
                "federation with --initial-model"
            )
        if in_stream.digest == stored.digest:
            exact = next((one for one in (stored, in_stream) if not one.version.copy_of), None)
        elif found.rank == version.rank:
            raise ConfigError(
                f"the stream {topology.models.name} holds another version {version.rank} than the file: "
                "another federation of the same name made it. Give one of them another name"
            )
        terms.append(found.term)
    if exact:
        exchange, body = topology.head_in, exact.body
    elif version.privacy:
        raise ConfigError(
            "the file has a version of a federation with differential privacy, and the broker cannot tell "
            "that none came after it: what later versions have shown of the workers would not be counted. "
            "Begin another federation with --initial-model"
        )
    else:
        # Workers may have seen versions that came after the file, and a rounded copy is never taken for the
        # version itself. So this becomes a record of its own, whose term is above all of them.
        term = max([version.term, *terms]) + TERMS_AHEAD
        version = replace(
            version,
            term=term,
            terms=(*version.terms, Rank(term, version.version)),
            parent=stored.digest,
            folded=(),
            codec="float32",
            copy_of="",
        )
        exchange, body = topology.versions_in, encode_version(version)
    broker.publish(exchange.name, "", body, {"kind": "version"})
    publish_record(broker, topology, body)
    return version.rank


def ranks_in_head(broker: Broker, topology: Topology) -> tuple[Rank | None, list[int]]:
    """Return the rank of the head's newest version, and every term that somebody published under."""
    with broker.peek(topology.head.name) as bodies:
        ranks = [(record.rank, isinstance(record, ModelVersion)) for record in map(decode_record, bodies)]
    versions = [rank for rank, is_version in ranks if is_version]
    return max(versions, default=None), [rank.term for rank, _ in ranks]


def highest_term(broker: Broker, topology: Topology) -> int:
    """Return the highest term in head and stream, which readers may know; 0 if both are empty or gone."""
    terms = [0]
    with suppress(TopologyMissing):
        newest = version_at_hand(broker, topology)
        terms += [newest.term] if newest else []
    with suppress(TopologyMissing):
        terms += ranks_in_head(broker, topology)[1]
    return max(terms)


def begin_anew(broker: Broker, topology: Topology, *, above_term: int) -> None:
    """Declare again what was deleted, and empty the stream of models; version 0 gets a higher term.

    That stream goes last. If this process dies before that, no aggregator takes the federation for a new one,
    and the next reset finds in the stream which terms were used. Raises what `Broker.declare` and
    `Broker.publish` raise.
    """
    broker.declare(topology)
    if above_term:
        claim = MomentsRecord(topology.federation, Rank(above_term + TERMS_AHEAD, 0), {})
        broker.publish(topology.head_in.name, "", moments_pieces(claim), {"kind": "moments"})
    broker.recreate_stream(topology.best)
    broker.recreate_stream(topology.models)


def is_unconsumed(broker: Broker, queue: str) -> bool:
    """Tell whether a queue has no consumer; one that is leaving has a few seconds to do so."""
    deadline = time.monotonic() + LEAVING_S
    while broker.state(queue).consumers:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
