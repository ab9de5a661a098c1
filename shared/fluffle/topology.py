"""The exchanges, queues and bindings of a federation, as values that both ends share. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
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
# A close record takes some 100 bytes for each update.
CLOSES_SEGMENT_BYTES = 16 * MIB
CLOSES_MAX_BYTES = 256 * MIB

# A full queue refuses messages (back-pressure on the workers) long before RabbitMQ's memory or disk alarm.
UPDATES_MAX_BYTES = 4096 * MIB
REJECTED_MAX_BYTES = 1024 * MIB

UPDATES_DELIVERY_LIMIT = 20
# Each takeover reads the head and puts it back, which counts as a delivery; so does each look at F.rejected.
UNLIMITED = 1_000_000_000
HEAD_LENGTH = 6

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
    `head_in`, `models_in`, `records_in` and `best_in` feed one queue each, so that nobody needs the default
    exchange: who may write there may write to every queue, those of other federations too. The stream
    `records` has the record of each version without its weights, for everybody who watches. The stream `best`
    has the best version once `models` is about to lose it. With secure aggregation helpers read the stream
    `closes`, which `closes_in` feeds, and publish to `openings_in`, which the leader listens to; through
    `digests_in` they tell each other which close records they have seen.

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
    best_in: Exchange
    rejected_in: Exchange
    closes_in: Exchange
    openings_in: Exchange
    digests_in: Exchange
    member_events_in: Exchange
    events: Exchange
    # What dead-letters comes after what it dead-letters to.
    rejected: Queue
    updates: Queue
    head: Queue
    models: Queue
    records: Queue
    best: Queue
    closes: Queue

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Every exchange, each after its sources."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if isinstance(value, Exchange))

    @property
    def queues(self) -> tuple[Queue, ...]:
        """Every queue that exists as long as the federation."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if isinstance(value, Queue))

    @property
    def names(self) -> set[str]:
        """The names of all of them; a queue may have the name of an exchange."""
        return {each.name for each in self.exchanges} | {each.name for each in self.queues}

    def has_queue(self, queue: str) -> bool:
        """Tell whether a queue is one of these, or one that a part or a watcher makes for itself."""
        names = [each.name for each in self.queues]
        listeners = (self.events, self.openings_in, self.digests_in)
        prefixes = (self.worker_lock(""), *(f"{each.name}." for each in listeners))
        return queue in names or queue.startswith(prefixes) or queue in map(looked_into, names)

    def worker_lock(self, worker: str) -> str:
        """Return the queue that the one process under a worker's name has to itself."""
        return f"{self.federation}.worker.{worker}"

    def worker_bell(self, worker: str) -> str:
        """Return the queue through which another process says that it wants the name."""
        return f"{self.worker_lock(worker)}/bell"


def looked_into(queue: str) -> str:
    """Return the queue that a process that peeks into another queue holds exclusively meanwhile."""
    return f"{queue}.looked-into"


def topology_of(federation: str) -> Topology:
    """Return the exchanges and queues of a federation."""

    def exchange(name: str) -> Exchange:
        return Exchange(f"{federation}.{name}")

    def stream(name: str, exchanges: tuple[Exchange, ...], *, max_bytes: int, segment_bytes: int) -> Queue:
        limits = {"x-max-length-bytes": max_bytes, "x-stream-max-segment-size-bytes": segment_bytes}
        return Queue(f"{federation}.{name}", exchanges, {"x-queue-type": "stream", **limits})

    # None is named like a stream: RabbitMQ's rights go by name, and whoever may write to F.updates and read
    # an exchange may bind the one to the other (docs/decisions/0006).
    updates_in, evaluations_in, versions_in = map(exchange, ("updates", "evaluations", "versions"))
    head_in, models_in, rejected_in = map(exchange, ("head", "stream", "rejected"))
    records_in, best_in, closes_in = map(exchange, ("records-in", "best-in", "closes-in"))
    openings_in, digests_in = (Exchange(f"{federation}.{name}", "topic") for name in ("openings", "digests"))
    member_events_in = Exchange(f"{federation}.member-events", "topic")
    events = Exchange(f"{federation}.events", "topic", (member_events_in,))
    return Topology(
        federation,
        *(updates_in, evaluations_in, versions_in, head_in, models_in, records_in, best_in, rejected_in),
        *(closes_in, openings_in, digests_in),
        member_events_in,
        events,
        rejected=Queue(
            f"{federation}.rejected",
            (rejected_in,),
            {
                "x-queue-type": "quorum",
                "x-delivery-limit": UNLIMITED,
                "x-overflow": "drop-head",
                "x-max-length-bytes": REJECTED_MAX_BYTES,
            },
        ),
        updates=Queue(
            f"{federation}.updates",
            (updates_in, evaluations_in),
            {
                "x-queue-type": "quorum",
                "x-single-active-consumer": True,
                # A message that kills its consumer again and again ends in F.rejected, not in a loop. The
                # limit is always set: 4.0 has a default of its own that would drop in silence.
                "x-delivery-limit": UPDATES_DELIVERY_LIMIT,
                "x-dead-letter-exchange": rejected_in.name,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-max-length-bytes": UPDATES_MAX_BYTES,
            },
        ),
        head=Queue(
            f"{federation}.head",
            (versions_in, head_in),
            {
                "x-queue-type": "quorum",
                "x-delivery-limit": UNLIMITED,
                "x-overflow": "drop-head",
                "x-max-length": HEAD_LENGTH,
                # There is no such exchange. The argument beats a policy, by which each old version of the
                # model would go to whatever queue collects dead letters.
                "x-dead-letter-exchange": f"{federation}.nowhere",
            },
        ),
        models=stream(
            "models", (versions_in, models_in), max_bytes=STREAM_MAX_BYTES, segment_bytes=STREAM_SEGMENT_BYTES
        ),
        records=stream(
            "records", (records_in,), max_bytes=RECORDS_MAX_BYTES, segment_bytes=RECORDS_SEGMENT_BYTES
        ),
        best=stream("best", (best_in,), max_bytes=STREAM_MAX_BYTES, segment_bytes=STREAM_SEGMENT_BYTES),
        closes=stream("closes", (closes_in,), max_bytes=CLOSES_MAX_BYTES, segment_bytes=CLOSES_SEGMENT_BYTES),
    )
