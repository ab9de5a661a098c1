"""The federations of a virtual host, what each consists of on the broker, and how one is deleted or reset."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from fluffle.broker import Broker, QueueState
from fluffle.errors import AccessRefused, TopologyMissing, WireError
from fluffle.management import Kind, Management, QueueRow
from fluffle.model_stream import record_at_hand, version_at_hand
from fluffle.record import ModelVersion, MomentsRecord, Rank
from fluffle.rights import FEDERATION_NAME
from fluffle.topology import Topology, topology_of
from fluffle.wire import moments_pieces
from fluffle_cli.restoring import TERMS_AHEAD, ranks_in_head

# With so many names of a federation's exchanges and queues it is one, and no coincidence.
ENOUGH_NAMES = 3
CONNECTION = re.compile(r"([^/]+)/(worker|evaluator|aggregator)/([^/]+)")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a federation has on the broker.

    `queues` are those of its topology and those that parts and watchers created, `exchanges` those of its
    topology. `others` have names like its own, but Fluffle did not create them.
    """

    topology: Topology
    queues: tuple[QueueRow, ...]
    exchanges: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The exchanges and queues that it lacks."""
        queues = {queue.name for queue in self.queues}
        lacking = [
            f"exchange {one.name}" for one in self.topology.exchanges if one.name not in self.exchanges
        ]
        return lacking + [f"queue {one.name}" for one in self.topology.queues if one.name not in queues]

    @property
    def is_federation(self) -> bool:
        """Whether enough of it is there that these cannot be somebody else's queues."""
        topology = self.topology
        return len(topology.exchanges) + len(topology.queues) - len(self.missing) >= ENOUGH_NAMES

    @property
    def workers(self) -> list[str]:
        """The workers that are connected now, by the queues that lock their names."""
        prefix = self.topology.worker_lock("")
        names = [queue.name.removeprefix(prefix) for queue in self.queues if queue.name.startswith(prefix)]
        return sorted(name for name in names if not name.endswith("/bell"))

    def row(self, queue: str) -> QueueRow:
        """Return what RabbitMQ says of a queue; a missing queue is empty."""
        return next((row for row in self.queues if row.name == queue), QueueRow(queue, 0, None))


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationFacts:
    """One federation at a glance; `version`, `term` and `updates` are None before the first version.

    `updates` counts those in the newest version, `waiting` those that no version contains yet. `trouble`
    says why something is not known, and is empty otherwise.
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


def footprints(queues: Iterable[QueueRow], exchanges: Iterable[str]) -> dict[str, Footprint]:
    """Group queues and exchanges by the federation in their names; names without one are left out."""
    found: dict[str, tuple[list[QueueRow], list[str]]] = {}
    for queue in queues:
        found.setdefault(_federation_in(queue.name), ([], []))[0].append(queue)
    for exchange in exchanges:
        found.setdefault(_federation_in(exchange), ([], []))[1].append(exchange)
    return {name: _footprint(name, *found[name]) for name in sorted(found) if name}


def all_footprints(management: Management) -> dict[str, Footprint]:
    """Return what each federation has on the virtual host."""
    return footprints(management.queues(), management.exchanges())


def connected_parts(management: Management, federation: str) -> list[str]:
    """Return a federation's connected parts, such as "worker site-1"; RabbitMQ is some seconds behind."""
    found = [CONNECTION.match(name) for name in management.connection_names()]
    return sorted({f"{each[2]} {each[3]}" for each in found if each and each[1] == federation})


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
    return FederationFacts(
        federation=topology.federation,
        version=newest.version if newest else None,
        term=newest.term if newest else None,
        updates=newest.updates if newest else None,
        finished=newest.finished if newest else "",
        workers=len(footprint.workers),
        aggregator_leads=_state(broker, topology.updates.name).consumers > 0,
        waiting=waiting(broker, footprint, topology.updates.name),
        rejected=_state(broker, topology.rejected.name).messages,
        trouble=trouble,
    )


def delete(management: Management, footprint: Footprint, *, keep: str | None = None) -> Iterator[Kind]:
    """Delete everything of a federation but the queue `keep`, and yield the kind of each deleted thing.

    Exchanges go first: what is published from then on is refused, and so stays with its sender.
    """
    names: list[tuple[Kind, str]] = [("exchanges", name) for name in footprint.exchanges]
    names += [("queues", queue.name) for queue in footprint.queues if queue.name != keep]
    for kind, name in names:
        if management.delete(kind, name):
            yield kind


def waiting(broker: Broker, footprint: Footprint, queue: str) -> int:
    """Count the messages in a queue: the ready ones as of now, all of them some seconds ago."""
    return max(_state(broker, queue).messages, footprint.row(queue).messages)


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
