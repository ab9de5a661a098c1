"""Weight updates, their ids, and the memory of which of them a model contains. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any

from fluffle.compression import CodecName, CompressedVector
from fluffle.fields import (
    AnyNumber,
    Count,
    FieldError,
    Kind,
    Name,
    Positive,
    ShortText,
    at_most,
    kind_of,
    must,
)
from fluffle.model import Vector, no_values
from fluffle.plan import Sends
from fluffle.sealed.plan import SealedRefresh
from fluffle.survey.shape import SurveyShape

# A batch is doubled or halved at most so often.
_MOST_SCALE = 2.0**20
RateScale = Annotated[
    float, must(lambda number: 1 / _MOST_SCALE <= number <= _MOST_SCALE, "{} is not from 2**-20 to 2**20")
]

# The record of each version holds all that the model remembers, so that must be bounded.
MAX_RUNS = 12_000
MAX_RUNS_PER_WORKER = 1_000
MAX_GAPS_PER_RUN = 256
MAX_GAPS = 40_000
# If an update absorbs more than these, the oldest of them stay refused.
MAX_ABSORBS = 32


@dataclass(frozen=True, slots=True, order=True)
class UpdateId:
    """The id of one update: the worker, its run (kept in its spool) and a number from 1 up."""

    worker: Name
    run: Name
    sequence: Positive

    def __str__(self) -> str:
        return f"{self.worker}/{self.run}/{self.sequence}"


def _require_ascending(numbers: tuple[int, ...]) -> None:
    if any(later <= one for one, later in pairwise(numbers)):
        raise FieldError("expected ascending numbers")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightUpdate:
    """What one worker learnt in one round.

    `base_term` and `base_version` name the version that the training started from. `vector`, in `codec`, is
    trained minus base where `sends` is "delta", else the trained weights; `statistics` (float32) and
    `integers` are always values. All three hold the tensors of the layout from number `first_tensor` on,
    counted from 0: it is 0 unless a worker trains the last layers alone.

    `steps` are the minibatches of the round, of `batch_size` examples each; 0 where the task's data has sizes
    of its own. `learning_rate_scale` is what the worker multiplied the plan's learning rate by to suit that
    size. `loss` is that of the training data, None where the task reports none, and `train_s` the seconds
    that the round took: both are for people. `absorbs` are the numbers of earlier updates of the run that
    were refused and whose content is in this one: they may not count any more.

    With secure aggregation `epoch` is that of the keys by which the vector is masked, and 0 otherwise, and
    `revision` is that of the plan by which it was made. The statistics, and what the site has measured, are
    then part of the masked vector. Nothing more is sent but `train_s`: integers and loss are left out, and
    examples, steps and batch size are 0. With a `shape` it is no update, but the answer to a survey, whose
    statistics are in the vector.

    Where workers add the noise of differential privacy, `released` is how many updates this worker has ever
    sent, with this one: each of them spends its privacy, whatever becomes of it.

    In a sealed federation `key` is the id of the key by which the vector is encrypted. With a `refresh` it is
    no update, but what makes the sum of its base version one that was encrypted anew: see `SealedRefresh`.
    """

    federation: ShortText
    id: UpdateId
    base_term: Positive
    base_version: Count
    layout_digest: ShortText
    first_tensor: Count = 0
    sends: Sends
    codec: CodecName
    vector: CompressedVector
    statistics: Vector = field(default_factory=no_values)
    integers: bytes = b""
    examples: int
    steps: Positive = 1
    batch_size: Count = 0
    learning_rate_scale: RateScale = 1.0
    loss: AnyNumber | None = None
    train_s: float = 0.0
    absorbs: Annotated[tuple[Positive, ...], at_most(MAX_ABSORBS), _require_ascending] = ()
    epoch: Count = 0
    revision: Count = 0
    released: Count = 0
    shape: SurveyShape | None = None
    key: ShortText = ""
    refresh: SealedRefresh | None = None

    @property
    def local_work(self) -> float:
        """How far a round of plain SGD goes along its gradients: steps times learning rate."""
        return self.steps * self.learning_rate_scale

    @property
    def saying_nothing(self) -> "WeightUpdate":
        """The update without all that it tells of its round, and without integers, which are no sums."""
        return replace(
            self,
            integers=b"",
            examples=1,
            steps=1,
            batch_size=0,
            learning_rate_scale=1.0,
            loss=None,
            train_s=0.0,
        )

    @property
    def absorbed(self) -> list[UpdateId]:
        """The ids of the updates whose content is in this one."""
        return [replace(self.id, sequence=sequence) for sequence in self.absorbs]


@dataclass(frozen=True, slots=True)
class RunLog:
    """The applied sequence numbers of one run: all up to `highest` except those in `gaps`.

    A gap is a pair (first, last), both inclusive, of numbers that have not arrived; gaps ascend.
    """

    highest: Count = 0
    gaps: tuple[tuple[Positive, Positive], ...] = ()

    def __contains__(self, sequence: int) -> bool:
        return sequence <= self.highest and not any(first <= sequence <= last for first, last in self.gaps)

    def adding(self, sequence: int) -> "RunLog":
        """Return the log with one more number in it."""
        if sequence > self.highest:
            skipped = ((self.highest + 1, sequence - 1),) if sequence > self.highest + 1 else ()
            # Bounded: the oldest gap is closed. An update as late as that is refused as a duplicate, with
            # its reason in F.rejected, and never counts twice.
            return RunLog(sequence, (self.gaps + skipped)[-MAX_GAPS_PER_RUN:])
        gaps: list[tuple[int, int]] = []
        for first, last in self.gaps:
            if not first <= sequence <= last:
                gaps.append((first, last))
                continue
            if first < sequence:
                gaps.append((first, sequence - 1))
            if sequence < last:
                gaps.append((sequence + 1, last))
        return RunLog(self.highest, tuple(gaps[-MAX_GAPS_PER_RUN:]))


@dataclass(frozen=True, slots=True)
class AppliedUpdates:
    """Which updates a model contains: for each run of each worker a watermark, and the gaps below it."""

    runs: Mapping[tuple[str, str], RunLog] = field(default_factory=dict)

    def __contains__(self, update: UpdateId) -> bool:
        return update.sequence in self.runs.get((update.worker, update.run), RunLog())

    def is_past(self, update: UpdateId) -> bool:
        """Return whether an update, or a later one of its run, is applied."""
        return update.sequence <= self.runs.get((update.worker, update.run), RunLog()).highest

    def adding(self, updates: Iterable[UpdateId]) -> "AppliedUpdates":
        """Return the memory with more updates in it."""
        runs = dict(self.runs)
        for update in updates:
            key = update.worker, update.run
            before = runs.get(key, RunLog())
            runs[key] = before.adding(update.sequence)
            if (
                len(runs[key].gaps) > len(before.gaps)
                and sum(len(log.gaps) for log in runs.values()) > MAX_GAPS
            ):
                most = max(runs, key=lambda run: len(runs[run].gaps))
                runs[most] = RunLog(runs[most].highest, runs[most].gaps[1:])
        return AppliedUpdates(runs)

    def why_full(self, update: UpdateId) -> str:
        """Return why the run of an update cannot be remembered; empty when it can, or already is."""
        if (update.worker, update.run) in self.runs:
            return ""
        if len(self.runs) >= MAX_RUNS:
            return (
                f"the federation has seen {MAX_RUNS} runs of workers, and remembers no more: begin another "
                "one with its model"
            )
        if sum(worker == update.worker for worker, _ in self.runs) >= MAX_RUNS_PER_WORKER:
            return f"worker {update.worker} has come in {MAX_RUNS_PER_WORKER} runs: give it another name"
        return ""


_ROWS = kind_of(tuple[tuple[Name, Name, RunLog], ...])


def _read_applied(found: Any) -> AppliedUpdates:
    runs: dict[tuple[str, str], RunLog] = {}
    for worker, run, log in _ROWS.read(found):
        if (worker, run) in runs:
            raise FieldError(f"run {run} of {worker} stands there twice")
        below = 0
        for first, last in log.gaps:
            if not below < first <= last <= log.highest:
                raise FieldError(
                    f"run {run} of {worker}: expected ascending gaps below {log.highest}, found "
                    f"{first} to {last} after {below}"
                )
            below = last
        runs[worker, run] = log
    return AppliedUpdates(runs)


def _applied_rows(applied: AppliedUpdates) -> list[Any]:
    return [(*run, (log.highest, log.gaps)) for run, log in applied.runs.items()]


Applied = Annotated[AppliedUpdates, Kind(_read_applied, _applied_rows)]
