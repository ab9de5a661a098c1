"""Weight updates, their identity, and the memory of which of them a model already contains. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fluffle.compression import CompressedVector
from fluffle.model import Vector, no_values
from fluffle.plan import Sends

# What a model remembers stands in the record of each of its versions, and nobody could read one without end.
MAX_RUNS = 12_000
MAX_RUNS_PER_WORKER = 1_000
MAX_GAPS_PER_RUN = 256
MAX_GAPS = 40_000
# An update that takes the place of more than these leaves the oldest of them refused for good.
MAX_ABSORBS = 32


@dataclass(frozen=True, slots=True, order=True)
class UpdateId:
    """Names one update for ever: the worker, its run (kept in its spool) and a number from 1 up."""

    worker: str
    run: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.worker}/{self.run}/{self.sequence}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightUpdate:
    """What one worker learnt in one round.

    `base_term` and `base_version` name the version that the training started from. `vector` is of the
    layout's size, in `codec`: trained minus base where `sends` is "delta", else the trained weights.
    `statistics` (float32 [layout.statistics_size]) and `integers` are always values. `absorbs` are the
    numbers of earlier updates of its run that were refused, and whose content is in this one: they may not
    count any more.
    """

    federation: str
    id: UpdateId
    base_term: int
    base_version: int
    layout_digest: str
    sends: Sends
    codec: str
    vector: CompressedVector
    statistics: Vector = field(default_factory=no_values)
    integers: bytes = b""
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    train_s: float = 0.0
    absorbs: tuple[int, ...] = ()

    @property
    def absorbed(self) -> list[UpdateId]:
        """The ids of the updates that this one takes the place of."""
        return [replace(self.id, sequence=sequence) for sequence in self.absorbs]


@dataclass(frozen=True, slots=True)
class RunLog:
    """The sequence numbers of one run that are applied: all up to `highest` but those in the `gaps`.

    A gap is a pair (first, last) of numbers that have not come, both inclusive; gaps ascend.
    """

    highest: int = 0
    gaps: tuple[tuple[int, int], ...] = ()

    def __contains__(self, sequence: int) -> bool:
        return sequence <= self.highest and not any(first <= sequence <= last for first, last in self.gaps)

    def adding(self, sequence: int) -> RunLog:
        """Return the log with one more number in it."""
        if sequence > self.highest:
            skipped = ((self.highest + 1, sequence - 1),) if sequence > self.highest + 1 else ()
            # Bounded: the oldest gap closes, so that an update as late as that is refused as a duplicate,
            # with its reason in F.rejected, and never counts twice.
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
        """Tell whether an update is applied, or a later one of its run is."""
        return update.sequence <= self.runs.get((update.worker, update.run), RunLog()).highest

    def adding(self, updates: Iterable[UpdateId]) -> AppliedUpdates:
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
        """Say why one more run may not be remembered; empty when it may, or is remembered already."""
        if (update.worker, update.run) in self.runs:
            return ""
        if len(self.runs) >= MAX_RUNS:
            return f"the federation has seen {MAX_RUNS} runs of workers, and remembers no more"
        if sum(worker == update.worker for worker, _ in self.runs) >= MAX_RUNS_PER_WORKER:
            return f"worker {update.worker} has come in {MAX_RUNS_PER_WORKER} runs: give it another name"
        return ""
