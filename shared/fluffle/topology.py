"""The exchanges, queues and bindings of a federation, as values that both ends share. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MIB = 1024 * 1024

# RabbitMQ's own limit for one message, and so for one model or update.
MAX_MESSAGE_BYTES = 512 * MIB

# Retention deletes whole segments. With room for two segments and two models of the largest size, it never
# deletes the newest model.
STREAM_SEGMENT_BYTES = 64 * MIB
STREAM_MAX_BYTES = 2 * (STREAM_SEGMENT_BYTES + MAX_MESSAGE_BYTES)

# Headers without vectors: one takes from 2 KB (a few workers) to 8 MiB (thousands).
RECORDS_SEGMENT_BYTES = 16 * MIB
RECORDS_MAX_BYTES = 256 * MIB

# A full queue refuses messages (back-pressure on the workers) long before RabbitMQ's memory or disk alarm.
UPDATES_MAX_BYTES = 4096 * MIB
REJECTED_MAX_BYTES = 1024 * MIB

UPDATES_DELIVERY_LIMIT = 20
HEAD_LENGTH = 4

# What to do about a queue or exchange that exists with other arguments.
OTHER_ARGUMENTS = (
    "exists with other arguments, of another version of Fluffle or of somebody else: take the model along to "
    "another federation (`fluffle model export`, then --federation and --initial-model), or delete it; "
    'docs/how-to/resume.md has the steps under "A new version of Fluffle"'
)

# Each listener's queue keeps only the newest events.
LISTENER_MAX_MESSAGES, LISTENER_MAX_BYTES = 10_000, 16 * MIB

Argument = str | int | bool


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange, and the exchanges whose messages it gets too.

    Most are fanouts: routing keys come from whoever publishes, so nothing trusts them.
    """

    name: str
    kind: Literal["fanout", "topic"] = "fanout"
    sources: "tuple[Exchange, ...]" = ()

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """The exchange is its own alternate, which means that it has none.

        The argument beats a policy. With an alternate exchange by policy, an update that no queue takes would
        be confirmed to its worker, and lie in somebody else's queue.
        """
        return {"alternate-exchange": self.name}


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue, and the exchanges that it is bound to."""

    name: str
    exchanges: tuple[Exchange, ...]
    arguments: Mapping[str, Argument]


@dataclass(frozen=True, slots=True)
class Topology:
    """All that a federation needs on the broker.

    Workers publish to the exchange `updates_in` and evaluators to `evaluations_in`, both into the queue
    `updates`: RabbitMQ's rights go by exchange, and so nobody but an evaluator can report an evaluation.
    `versions_in` feeds the head queue and the stream of models, `rejected_in` the queue of what was refused.
    `head_in`, `models_in` and `records_in` feed one queue each, so that nobody needs the default exchange:
    who may write there may write to every queue, those of other federations too. The stream `records` has
    the record of each version without its weights, for everybody who watches.

    Every part publishes events to `events`; workers and evaluators go through `member_events_in`, so that a
    listener knows which come from an aggregator.
    """

    federation: str
    updates_in: Exchange
    evaluations_in: Exchange
    versions_in: Exchange
    head_in: Exchange
    models_in: Exchange
    records_in: Exchange
    rejected_in: Exchange
    member_events_in: Exchange
    events: Exchange
    updates: Queue
    rejected: Queue
    head: Queue
    models: Queue
    records: Queue

    def worker_lock(self, worker: str) -> str:
        """Return the queue that the one process under a worker's name has to itself."""
        return f"{self.federation}.worker.{worker}"

    def is_passing(self, queue: str) -> bool:
        """Tell whether a part or a watcher makes this queue for itself, so that it is deleted with it."""
        prefixes = (f"{self.federation}.worker.", f"{self.events.name}.")
        return queue.startswith(prefixes) or queue in {looked_into(each.name) for each in self.queues}

    def worker_bell(self, worker: str) -> str:
        """Return the queue through which another process says that it wants the name."""
        return f"{self.worker_lock(worker)}/bell"

    @property
    def queues(self) -> tuple[Queue, ...]:
        """Every queue; what dead-letters comes after what it dead-letters to."""
        return self.rejected, self.updates, self.head, self.models, self.records

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Every exchange, once, and after its sources."""
        return (
            self.updates_in,
            self.evaluations_in,
            self.versions_in,
            self.head_in,
            self.models_in,
            self.records_in,
            self.rejected_in,
            self.member_events_in,
            self.events,
        )


def looked_into(queue: str) -> str:
    """Return the queue that a process that peeks into another queue holds exclusively meanwhile."""
    return f"{queue}.looked-into"


def topology_of(federation: str) -> Topology:
    """Return the exchanges and queues of a federation."""
    updates, evaluations = Exchange(f"{federation}.updates"), Exchange(f"{federation}.evaluations")
    rejected = Exchange(f"{federation}.rejected")
    # None is named like a stream: RabbitMQ's rights go by name, and whoever may write to F.updates and read
    # an exchange may bind the one to the other (docs/decisions/0006).
    versions = Exchange(f"{federation}.versions")
    head, models = Exchange(f"{federation}.head"), Exchange(f"{federation}.stream")
    records = Exchange(f"{federation}.records-in")
    member_events = Exchange(f"{federation}.member-events", "topic")
    return Topology(
        federation,
        updates_in=updates,
        evaluations_in=evaluations,
        versions_in=versions,
        head_in=head,
        models_in=models,
        records_in=records,
        rejected_in=rejected,
        member_events_in=member_events,
        events=Exchange(f"{federation}.events", "topic", (member_events,)),
        updates=Queue(
            f"{federation}.updates",
            (updates, evaluations),
            {
                "x-queue-type": "quorum",
                "x-single-active-consumer": True,
                # A message that kills its consumer again and again ends in F.rejected, not in a loop. The
                # limit is always set: 4.0 has a default of its own that would drop in silence.
                "x-delivery-limit": UPDATES_DELIVERY_LIMIT,
                "x-dead-letter-exchange": rejected.name,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-max-length-bytes": UPDATES_MAX_BYTES,
            },
        ),
        rejected=Queue(
            f"{federation}.rejected",
            (rejected,),
            {
                "x-queue-type": "quorum",
                "x-delivery-limit": 1_000_000_000,
                "x-overflow": "drop-head",
                "x-max-length-bytes": REJECTED_MAX_BYTES,
            },
        ),
        head=Queue(
            f"{federation}.head",
            (versions, head),
            {
                "x-queue-type": "quorum",
                # Each takeover reads the head and puts it back, which counts as a delivery.
                "x-delivery-limit": 1_000_000_000,
                "x-overflow": "drop-head",
                "x-max-length": HEAD_LENGTH,
                # There is no such exchange. The argument beats a policy, by which each old version of the
                # model would go to whatever queue collects dead letters.
                "x-dead-letter-exchange": f"{federation}.nowhere",
            },
        ),
        models=Queue(
            f"{federation}.models",
            (versions, models),
            {
                "x-queue-type": "stream",
                "x-max-length-bytes": STREAM_MAX_BYTES,
                "x-stream-max-segment-size-bytes": STREAM_SEGMENT_BYTES,
            },
        ),
        records=Queue(
            f"{federation}.records",
            (records,),
            {
                "x-queue-type": "stream",
                "x-max-length-bytes": RECORDS_MAX_BYTES,
                "x-stream-max-segment-size-bytes": RECORDS_SEGMENT_BYTES,
            },
        ),
    )
