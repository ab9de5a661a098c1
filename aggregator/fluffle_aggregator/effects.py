"""What a leader is told and asks for: the time, and the effects of its decisions outside. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fluffle.broker import Delivery
from fluffle.events import Event
from fluffle.record import ModelVersion, MomentsRecord
from fluffle.secure.closing import CloseRecord
from fluffle.secure.sums import SumRecord
from fluffle_aggregator.gates.gate import Refusal


@dataclass(frozen=True, slots=True)
class Now:
    """The time at which something happens, in seconds: a clock that never goes back, and Unix time."""

    clock: float
    unix: float


@dataclass(frozen=True, slots=True)
class Ack:
    """Tell the broker that these messages are done with."""

    tags: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Reject:
    """Move a message to the queue of rejected messages, and ack it when it is there."""

    delivery: Delivery
    refusal: Refusal
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class TryOut:
    """Take in a suspicious message in another process, and tell the leader how that ended."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class LookFor:
    """Tell the leader which of these workers RabbitMQ does not know any more."""

    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Let these messages return to the queue, which delivers them again at once."""

    tags: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PublishSum:
    """Publish a sum to the head: from now on the next version is made of exactly its updates."""

    record: SumRecord


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the helpers to open a sum."""

    close: CloseRecord


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """Publish a version, its moments before it, and tell the leader when it is confirmed."""

    record: ModelVersion
    moments: MomentsRecord | None


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell an event to whoever watches."""

    event: Event


@dataclass(frozen=True, slots=True)
class Log:
    """Write one line to the log; `level` is the name of one of logging's levels."""

    level: str
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


Effect = Ack | Reject | TryOut | LookFor | GiveBack | PublishSum | Ask | Commit | Tell | Log


def info(event: str, **fields: object) -> Log:
    """Return a line at level info."""
    return Log("INFO", event, fields)


def warning(event: str, **fields: object) -> Log:
    """Return a line at level warning."""
    return Log("WARNING", event, fields)
