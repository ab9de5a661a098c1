"""The federations of a virtual host, and what each consists of on the broker."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from fluffle.broker import Broker, QueueState
from fluffle.errors import AccessRefused, TopologyMissing, WireError
from fluffle.management import Management, QueueRow
from fluffle.model_stream import record_at_hand
from fluffle.rights import FEDERATION_NAME
from fluffle.topology import Topology, topology_of

# With so many names of a federation's exchanges and queues it is one, and no coincidence.
ENOUGH_NAMES = 3
CONNECTION = re.compile(r"([^/]+)/(worker|evaluator|aggregator|helper)/([^/]+)")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a federation has on the broker.

    `queues` are those of its topology and those that parts and watchers created, `exchanges` those of its
    topology. `others` have names like its own, but Fluffle did not create them.
    """

    topology: Topology
    queues: list[QueueRow] = field(default_factory=list)
    exchanges: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

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

    def messages_in(self, queue: str) -> int:
        """Return how many messages RabbitMQ counted in a queue some seconds ago; 0 in a missing one."""
        return sum(row.messages for row in self.queues if row.name == queue)


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationFacts:
    """One federation at a glance; `version`, `term` and `updates` are None before the first version.

    `updates` counts those in the newest version, `waiting` the messages in F.updates: updates, evaluations,
    and what an aggregator that failed at its start has left. `trouble` says why something is not known, and
    is empty otherwise.
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
    found: dict[str, Footprint] = {}

    def footprint_of(name: str) -> Footprint | None:
        federation, dot, _ = name.partition(".")
        if not dot or not re.fullmatch(FEDERATION_NAME, federation):
            return None
        return found.setdefault(federation, Footprint(topology_of(federation)))

    for queue in queues:
        if footprint := footprint_of(queue.name):
            if footprint.topology.has_queue(queue.name):
                footprint.queues.append(queue)
            else:
                footprint.others.append(f"queue {queue.name}")
    for exchange in exchanges:
        if footprint := footprint_of(exchange):
            if exchange in (each.name for each in footprint.topology.exchanges):
                footprint.exchanges.append(exchange)
            else:
                footprint.others.append(f"exchange {exchange}")
    return dict(sorted(found.items()))


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
    newest = None
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


def waiting(broker: Broker, footprint: Footprint, queue: str) -> int:
    """Count the messages in a queue: the ready ones as of now, all of them some seconds ago."""
    return max(_state(broker, queue).messages, footprint.messages_in(queue))


def _state(broker: Broker, queue: str) -> QueueState:
    try:
        return broker.state(queue)
    except TopologyMissing:
        return QueueState(messages=0, consumers=0)
