"""What happens in a federation, told as it happens to whoever listens: pages, metrics, people. Pure.

Events are for looking on. They may be lost, and nothing is decided by them: what counts stands in the records
of the versions. Each part sends its own, a few at a time, as one `Report` (docs/protocol.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args

from fluffle.errors import WireError
from fluffle.fields import MAX_METRICS, Fields

Role = Literal["aggregator", "worker", "evaluator"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

MAX_EVENTS: Final = 256
MAX_TEXT: Final = 500
# Why a message is refused that comes after the end: it is nothing to worry about, and counted apart.
AFTER_THE_END: Final = "finished"


@dataclass(frozen=True, slots=True)
class Joined:
    """A part is connected, for the first time or again."""


@dataclass(frozen=True, slots=True)
class Left:
    """A part ends in good order; one that dies tells nobody."""

    because: str


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Another process wanted this worker's name, and was turned away; `other` says which one."""

    other: str


@dataclass(frozen=True, slots=True)
class Started:
    """A worker trains from a version, for the update of this id."""

    update: str
    version: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """So many batches of a worker's round are done."""

    update: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Trained:
    """A worker's round is over; `seconds` is how long it took.

    `loss` is that of the training data: it may be NaN, and is None where the task reports none.
    """

    update: str
    version: int
    seconds: float
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """The broker has confirmed a worker's update."""

    update: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """An evaluator has measured a version; `seconds` is how long it took."""

    version: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Applied:
    """The leader has folded an update into its buffer; `plain_bytes` are those of its vector in float32."""

    update: str
    base_version: int
    staleness: int
    weight: float
    examples: int
    size_bytes: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The leader has refused a message. Of one that cannot be read, `update` and `worker` may be empty."""

    update: str
    worker: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The leader has published a version, which took so many seconds; `updates` counts since version 0.

    `best_version` is the version that was evaluated best, -1 while none was, and `best_by` the metric by
    which it is, with its direction. `started_s`, `closing` and `finished` are the record's.
    """

    version: int
    term: int
    updates: int
    rejected: int
    target_held: int
    best_version: int
    elapsed_s: float
    seconds: float
    finished: str
    best_by: str = ""
    started_s: float | None = None
    closing: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The leader has taken in what an evaluator measured of a version."""

    evaluator: str
    version: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TookOver:
    """An aggregator leads from now on, under a term of its own."""

    term: int
    version: int


Event = (
    Joined
    | Left
    | TurnedAway
    | Started
    | Progressed
    | Trained
    | Published
    | Measured
    | Applied
    | Rejected
    | Committed
    | Evaluated
    | TookOver
)
KINDS: Final[Mapping[str, type[Event]]] = {kind.__name__.lower(): kind for kind in get_args(Event)}


@dataclass(frozen=True, slots=True)
class Happened:
    """One event, and when: Unix time in seconds by the clock of the part that tells of it."""

    at: float
    event: Event


@dataclass(frozen=True, slots=True)
class Report:
    """What one part tells in one message."""

    federation: str
    role: Role
    name: str
    events: tuple[Happened, ...]


def report_header(report: Report) -> dict[str, Any]:
    """Return the header of a report."""
    return {
        "kind": "events",
        "federation": report.federation,
        "role": report.role,
        "name": report.name,
        "events": [
            [type(each.event).__name__.lower(), each.at, _values(each.event)] for each in report.events
        ],
    }


def read_report(federation: str, header: Fields, payload: memoryview) -> Report:
    """Read a report. Raises WireError that names the field."""
    header.empty_payload(payload)
    said, name = header.choice("role", ROLES), header.name("name")
    role = next(role for role in ROLES if role == said)
    happened = tuple(_happened(row) for row in header.rows("events", ("event", "at", "values")))
    if len(happened) > MAX_EVENTS:
        raise WireError(f"field events: {len(happened)} of them, at most {MAX_EVENTS} are allowed")
    header.done()
    return Report(federation, role, name, happened)


def _values(event: Event) -> list[object]:
    values = [getattr(event, name) for name in type(event).__slots__]
    return [value[:MAX_TEXT] if isinstance(value, str) else value for value in values]


def _happened(row: Fields) -> Happened:
    kind = KINDS[row.choice("event", KINDS)]
    at, columns = row.number("at"), fields(kind)
    said = row.row("values", [each.name for each in columns])
    return Happened(at, kind(*(_READERS[str(each.type)](said, each.name) for each in columns)))


# By the annotation of an event's field.
_READERS: Final[Mapping[str, Callable[[Fields, str], Any]]] = {
    "str": lambda said, name: said.text(name, MAX_TEXT),
    "int": lambda said, name: said.integer(name),
    "float": lambda said, name: said.number(name),
    "float | None": lambda said, name: said.number_or_nil(name),
    "Mapping[str, float]": lambda said, name: said.numbers(name, MAX_METRICS),
}
