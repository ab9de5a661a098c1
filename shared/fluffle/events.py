"""What happens in a federation, reported as it happens: for the live page, metrics and people. Pure.

Events may be lost, and nothing is decided by them: what counts is in the records of the versions. Each part
sends its own events, a few at a time, in one `Report` (docs/protocol.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args

from fluffle.fields import AnyNumber, FieldError, Kind, Metrics, Name, ShortText, at_most, kind_of, text

Role = Literal["aggregator", "worker", "evaluator", "helper"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

MAX_EVENTS: Final = 256
MAX_TEXT: Final = 500
# The reason for refusing a message that comes after the end. That is normal, and counted separately.
AFTER_THE_END: Final = "finished"
# A longer text is cut when it is written.
Text = Annotated[str, Kind(text(MAX_TEXT).read, lambda value: value[:MAX_TEXT])]


@dataclass(frozen=True, slots=True)
class Joined:
    """A part has connected, for the first time or again."""


@dataclass(frozen=True, slots=True)
class Left:
    """A part ends as it should; one that is killed sends no event."""

    because: Text


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Another process, `other`, wanted this worker's name and was refused."""

    other: Text


@dataclass(frozen=True, slots=True)
class Started:
    """A worker begins to train from a version."""

    version: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """A worker has trained `done` of the `total` batches of its round."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Trained:
    """A worker has ended a round after `seconds`; `update` is the id of the update that it made.

    `loss` is the loss on the training data; it may be NaN, and is None where the task reports none.
    """

    update: Text
    seconds: float
    loss: AnyNumber | None = None


@dataclass(frozen=True, slots=True)
class Aborted:
    """A worker has ended a round early, after `seconds`: `staleness` versions late, it would be refused."""

    version: int
    staleness: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Published:
    """The broker has confirmed a worker's update."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """An evaluator has evaluated a version, in `seconds`."""

    version: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Validated:
    """A worker has evaluated a version on the `examples` that its site holds out, in `seconds`."""

    version: int
    seconds: float
    examples: int
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Applied:
    """The leader has folded an update into its buffer; `plain_bytes` is the vector's size in float32."""

    staleness: int
    weight: float
    examples: int
    size_bytes: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The leader has refused a message; `update` and `worker` are empty where it cannot be read."""

    update: Text
    worker: Text
    reason: Text
    detail: Text


@dataclass(frozen=True, slots=True)
class Committed:
    """The leader has published a version, in `seconds`; `training_s` and `target_held` are as in its record.

    `best_version` is the version with the best evaluation, -1 if none has one.
    """

    version: int
    term: int
    seconds: float
    training_s: float
    target_held: int
    best_version: int


@dataclass(frozen=True, slots=True)
class Spent:
    """With differential privacy, `epsilon` is what the worker with the most updates has spent after a commit.

    It has `updates` in the model, which has `steps` sums. The noise is added as the `mechanism` says.
    """

    epsilon: float
    updates: int
    steps: int
    mechanism: Text


@dataclass(frozen=True, slots=True)
class SumSealed:
    """In a sealed federation, `range_used` is the share of its range that the sum may have come to.

    The sum has `size_bytes` in each version, and was encrypted anew `refreshes` times.
    """

    range_used: float
    size_bytes: int
    refreshes: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The leader has an evaluation of a version: of an evaluator, or of all sites together."""

    version: int
    metrics: Metrics
    by: Literal["evaluator", "sites"] = "evaluator"


@dataclass(frozen=True, slots=True)
class TookOver:
    """An aggregator has become the leader, with a new term."""

    term: int
    version: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The leader has merged a worker's answer to the survey: `answered` of `wanted` (0: as many as come)."""

    worker: Text
    answered: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The leader has closed the sum of a version, of so many updates: now the helpers open it."""

    version: int
    updates: int


@dataclass(frozen=True, slots=True)
class Unmasked:
    """The leader has the sum of a version without masks, `seconds` after it was closed."""

    version: int
    seconds: float
    helpers: Text


@dataclass(frozen=True, slots=True)
class Contradicted:
    """Helpers have answered otherwise than others about the sum of a version: they, or some of them, lie."""

    version: int
    helpers: Text


@dataclass(frozen=True, slots=True)
class Awaiting:
    """Secure aggregation does not go on: for so many seconds something is missing."""

    seconds: float
    missing: Text


@dataclass(frozen=True, slots=True)
class Opened:
    """A helper has opened the sum of a version for the leader, in `seconds`."""

    version: int
    number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Withheld:
    """A helper does not open the sum of a version: the rule that it breaks, and what was found."""

    version: int
    number: int
    rule: Text
    detail: Text


Workers = Joined | Left | TurnedAway | Started | Progressed | Trained | Aborted | Published
Leaders = Applied | Rejected | Committed | Spent | SumSealed | Evaluated | TookOver | Answered
OfSums = Closed | Unmasked | Contradicted | Awaiting
Event = Workers | Measured | Validated | Leaders | OfSums | Opened | Withheld
KINDS: Final[Mapping[str, type[Event]]] = {kind.__name__.lower(): kind for kind in get_args(Event)}
_ROWS: Final[Mapping[str, Kind]] = {word: kind_of(kind) for word, kind in KINDS.items()}


def _read_event(found: Any) -> Event:
    word = found[0] if isinstance(found, list) and found and isinstance(found[0], str) else ""
    if word not in KINDS:
        raise FieldError(f"unknown {word[:64]!r}, known are {', '.join(KINDS)}")
    event: Event = _ROWS[word].read(found[1:])
    return event


def _event_row(event: Event) -> list[Any]:
    word = type(event).__name__.lower()
    return [word, *_ROWS[word].write(event)]


@dataclass(frozen=True, slots=True)
class Happened:
    """One event, and its Unix time in seconds by the clock of the part that reports it."""

    at: float
    event: Annotated[Event, Kind(_read_event, _event_row)]


@dataclass(frozen=True, slots=True)
class Report:
    """The events that one part sends in one message."""

    federation: ShortText
    role: Role
    name: Name
    events: Annotated[tuple[Happened, ...], at_most(MAX_EVENTS)]
