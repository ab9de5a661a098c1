"""Which federations a virtual host has, what each is made of, and its end or new beginning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

from fluffle.broker import Broker, QueueState
from fluffle.errors import AccessRefused, TopologyMissing, WireError
from fluffle.model_stream import record_at_hand, version_at_hand
from fluffle.record import ModelVersion, Moments, Rank
from fluffle.rights import FEDERATION_NAME
from fluffle.topology import Topology, topology_of
from fluffle.wire import moments_pieces
from fluffle_cli.management import Kind, Management, QueueRow
from fluffle_cli.restoring import TERMS_AHEAD, ranks_in_head

# So many names of a federation's exchanges and queues are no chance.
ENOUGH_NAMES = 3
CONNECTION = re.compile(r"(?P<federation>[^/]+)/(?P<role>worker|evaluator|aggregator)/(?P<name>[^/]+)")


@dataclass(frozen=True, slots=True, order=True)
class ConnectedPart:
    """A worker, evaluator or aggregator of a federation that is connected, as its connection says."""

    role: str
    name: str

    def __str__(self) -> str:
        return f"{self.role} {self.name}"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a federation has on the broker.

    `queues` are those of its topology and those that parts and watchers have made, `exchanges` those of its
    topology. `others` are named like its own, but nothing in Fluffle makes them.
    """

    topology: Topology
    queues: tuple[QueueRow, ...]
    exchanges: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The exchanges and queues that it lacks."""
        lacking = [
            f"exchange {each.name}" for each in self.topology.exchanges if each.name not in self.exchanges
        ]
        names = {queue.name for queue in self.queues}
        return lacking + [f"queue {each.name}" for each in self.topology.queues if each.name not in names]

    @property
    def is_federation(self) -> bool:
        """Whether so much of it is there that these can be nobody else's queues."""
        topology = self.topology
        return len(topology.exchanges) + len(topology.queues) - len(self.missing) >= ENOUGH_NAMES

    @property
    def workers(self) -> list[str]:
        """The workers that hold their names now."""
        prefix = self.topology.worker_lock("")
        names = [queue.name.removeprefix(prefix) for queue in self.queues if queue.name.startswith(prefix)]
        return sorted(name for name in names if not name.endswith("/bell"))

    def row(self, queue: str) -> QueueRow:
        """Return what is known of a queue; of one that is not there, that it holds nothing."""
        return next((row for row in self.queues if row.name == queue), QueueRow(queue, 0, None))


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationFacts:
    """One federation at a glance. `version` and what depends on it is None before the first version.

    `updates` counts those in the newest version, `waiting` those that no version contains yet. `trouble`
    says why less is known than there could be, and is empty otherwise.
    """

    federation: str
    version: int | None
    term: int | None
    updates: int | None
    finished: str
    workers: int
    aggregator_leads: bool
    waiting: int
    rejected: int
    trouble: str

    def as_json(self) -> dict[str, object]:
        """Return the fields as plain types."""
        return asdict(self)


def footprints(queues: Iterable[QueueRow], exchanges: Iterable[str]) -> dict[str, Footprint]:
    """Sort queues and exchanges by the federations whose names they bear; names without one are left out."""
    queues_of: dict[str, list[QueueRow]] = {}
    exchanges_of: dict[str, list[str]] = {}
    for queue in queues:
        queues_of.setdefault(_federation_in(queue.name), []).append(queue)
    for exchange in exchanges:
        exchanges_of.setdefault(_federation_in(exchange), []).append(exchange)
    names = sorted({*queues_of, *exchanges_of} - {""})
    return {name: _footprint(name, queues_of.get(name, []), exchanges_of.get(name, [])) for name in names}


def all_footprints(management: Management) -> dict[str, Footprint]:
    """Return what each federation of the virtual host has there."""
    return footprints(management.queues(), management.exchanges())


def connected_parts(management: Management, federation: str) -> list[ConnectedPart]:
    """Return a federation's parts that are connected; RabbitMQ is seconds behind."""
    found = [CONNECTION.match(name) for name in management.connection_names()]
    return sorted(
        {
            ConnectedPart(each["role"], each["name"])
            for each in found
            if each and each["federation"] == federation
        }
    )


def facts_of(footprint: Footprint, broker: Broker) -> FederationFacts:
    """Look at a federation's queues and at its newest version, as far as this user may."""
    topology = footprint.topology
    trouble = f"lacks {', '.join(footprint.missing)}" if footprint.missing else ""
    newest: ModelVersion | None = None
    if not footprint.missing:
        try:
            newest = record_at_hand(broker, topology)
        except (AccessRefused, WireError) as error:
            trouble = str(error)
    updates, rejected = (_state(broker, queue.name) for queue in (topology.updates, topology.rejected))
    return FederationFacts(
        federation=topology.federation,
        version=newest.version if newest else None,
        term=newest.term if newest else None,
        updates=newest.updates if newest else None,
        finished=newest.finished if newest else "",
        workers=len(footprint.workers),
        aggregator_leads=updates.consumers > 0,
        waiting=waiting(broker, footprint, topology.updates.name),
        rejected=rejected.messages,
        trouble=trouble,
    )


def delete(
    management: Management, footprint: Footprint, *, keep: str | None = None
) -> Iterator[tuple[Kind, str]]:
    """Delete all that a federation has but the queue `keep`, one after another, and yield what was there.

    Exchanges go first: what is published from then on is refused, and so stays with its sender.
    """
    of_kind: tuple[tuple[Kind, list[str]], ...] = (
        ("exchanges", list(footprint.exchanges)),
        ("queues", [queue.name for queue in footprint.queues if queue.name != keep]),
    )
    for kind, names in of_kind:
        for name in names:
            if management.delete(kind, name):
                yield kind, name


def waiting(broker: Broker, footprint: Footprint, queue: str) -> int:
    """Count the messages in a queue: RabbitMQ counts those that wait at once, and seconds later all."""
    return max(_state(broker, queue).messages, footprint.row(queue).messages)


def highest_term(broker: Broker, topology: Topology) -> int:
    """Return the highest term that anybody can have seen in head or stream; 0 when both are empty or gone."""
    terms = [0]
    with suppress(TopologyMissing):
        newest = version_at_hand(broker, topology)
        terms += [newest.term] if newest else []
    with suppress(TopologyMissing):
        terms += ranks_in_head(broker, topology)[1]
    return max(terms)


def begin_anew(broker: Broker, topology: Topology, *, above_term: int) -> None:
    """Declare again what was deleted, and empty the stream of models, for a version 0 newer than all.

    That stream goes last: should this process die before the claim is there, no aggregator takes the
    federation for a new one, and whoever resets it again finds in the stream which terms were seen. Raises
    what `Broker.declare` and `Broker.publish` do.
    """
    broker.declare(topology)
    if above_term:
        claim = Moments(topology.federation, Rank(above_term + TERMS_AHEAD, 0), {})
        broker.publish(topology.head_in.name, "", moments_pieces(claim), {"kind": "moments"})
    broker.recreate_stream(topology.models)


def _federation_in(name: str) -> str:
    federation, dot, _ = name.partition(".")
    return federation if dot and re.fullmatch(FEDERATION_NAME, federation) else ""


def _footprint(federation: str, queues: list[QueueRow], exchanges: list[str]) -> Footprint:
    topology = topology_of(federation)
    own = {each.name for each in topology.queues}
    own_queues = [each for each in queues if each.name in own or topology.is_passing(each.name)]
    own_exchanges = [each.name for each in topology.exchanges if each.name in exchanges]
    others = [f"queue {each.name}" for each in queues if each not in own_queues]
    others += [f"exchange {each}" for each in exchanges if each not in own_exchanges]
    return Footprint(topology, tuple(own_queues), tuple(own_exchanges), tuple(others))


def _state(broker: Broker, queue: str) -> QueueState:
    try:
        return broker.state(queue)
    except TopologyMissing:
        return QueueState(messages=0, consumers=0)
