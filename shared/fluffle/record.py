"""The record of a model version: the model, and all that a successor of the aggregator needs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fluffle.model import FlatWeights, Layout, Vector, Weights, no_values
from fluffle.plan import Plan
from fluffle.update import AppliedUpdates, UpdateId

# An odd number of norms, so that the median is one of them.
MAX_NORMS = 101
# The updates that a worker's share is counted over, where FedAsync limits it.
SHARE_WINDOW = 50
MAX_REFUSAL_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Folded:
    """One update that a version contains, with the staleness and the weight that it was given.

    When it was published is said by its worker's clock, and when it was received by the aggregator's: Unix
    time in seconds, 0 where nobody knows. `loss` is the worker's own training loss, None where it reports
    none, and `train_s` the seconds that its round took. All of these are for people, never for decisions.
    """

    id: UpdateId
    base_version: int
    staleness: int
    weight: float
    published_at: float = 0.0
    received_at: float = 0.0
    loss: float | None = None
    train_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Contributor:
    """What one worker has given to the federation so far, even if all of it was refused.

    `examples` are those of its last update: its own, however many rounds it trained. `refusal` says why its
    last refused message was refused, and is empty if none was. Messages that came after the end are not
    counted. `loss` is the training loss of its last update, which may be NaN, and None where it reports none.
    `last_update_at` is Unix time in seconds by the aggregator's clock. The last three are for people, never
    for decisions.
    """

    updates: int = 0
    examples: int = 0
    staleness_sum: int = 0
    weight_sum: float = 0.0
    rejected: int = 0
    last_update_at: float = 0.0
    loss: float | None = None
    refusal: str = ""

    @property
    def mean_staleness(self) -> float:
        """The mean over this worker's applied updates, in versions."""
        return self.staleness_sum / self.updates if self.updates else 0.0


@dataclass(frozen=True, slots=True)
class PlateauState:
    """How many evaluations in a row were no better than the best, and how often the rate was lowered before.

    It is kept where the schedule of the learning rate goes by the evaluations.
    """

    misses: int = 0
    drops: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluator measured of one version on held-out data."""

    federation: str
    evaluator: str
    version: int
    metrics: Mapping[str, float]
    evaluate_s: float = 0.0


def not_finite(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics that are NaN or infinite."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """The order of versions: a higher term wins, whatever the version number."""

    term: int
    version: int

    def __str__(self) -> str:
        return f"{self.version} (term {self.term})"


def is_in_history(base: Rank, terms: Sequence[Rank], newest_version: int) -> bool:
    """Tell whether a version is one of the linear history that these terms make up.

    A leader that was frozen and wakes up may publish one more version, from which nobody goes on.
    """
    ends = [*(later.version for later in terms[1:]), newest_version]
    return any(
        began.term == base.term and began.version <= base.version <= end
        for began, end in zip(terms, ends, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelVersion:
    """One version of the global model.

    `version` counts the steps of the global model since the first (version 0); records of some versions
    may never be published. `vector`, `statistics` and `integers` are the
    model as `layout` says. `parent` is the digest of the record published before, empty for the first.
    `terms` has, for each term so far, the version that its leader went on from; they ascend.
    `folded` are the updates applied since then. `norms` says how far each of the last MAX_NORMS updates would
    have moved the model, oldest first; empty unless norms are limited. `moments_checksum` names the server
    optimizer's moments that lie beside this record in the head queue, None when it has none. `elapsed_s`
    counts the seconds in which the federation had a leader, and `started_s` is what it was when the first
    update came, None before that. `closing` says why the federation takes no more updates while it waits for
    the evaluation of its last model; `finished` says why it has ended. Both are empty until then.

    `best_by` is the metric by which `best` is the best evaluation, and its direction: "accuracy:max".
    `not_finite_held` counts the evaluations in a row whose metrics were not finite. `window` has the worker
    and the weight of the last updates, oldest first; empty unless FedAsync limits a worker's share.

    What is read from the stream may be a copy of a record, whose vector travelled in `codec` and is rounded.
    `copy_of` is the digest of the record itself, and empty for that one.
    """

    federation: str
    term: int
    version: int
    parent: str
    terms: tuple[Rank, ...]
    layout: Layout
    plan: Plan
    strategy: str
    vector: Vector
    statistics: Vector = field(default_factory=no_values)
    integers: bytes = b""
    applied: AppliedUpdates = field(default_factory=AppliedUpdates)
    folded: tuple[Folded, ...] = ()
    norms: tuple[float, ...] = ()
    contributors: Mapping[str, Contributor] = field(default_factory=dict)
    rejected: int = 0
    evaluation: Evaluation | None = None
    best: Evaluation | None = None
    best_by: str = ""
    target_held: int = 0
    not_finite_held: int = 0
    plateau: PlateauState = field(default_factory=PlateauState)
    window: tuple[tuple[str, float], ...] = ()
    elapsed_s: float = 0.0
    started_s: float | None = None
    committed_at: float = 0.0
    closing: str = ""
    finished: str = ""
    moments_checksum: int | None = None
    codec: str = "float32"
    copy_of: str = ""

    @property
    def rank(self) -> Rank:
        """The order of this version among all."""
        return Rank(self.term, self.version)

    @property
    def is_over(self) -> bool:
        """Whether no more updates are taken."""
        return bool(self.closing or self.finished)

    @property
    def training_s(self) -> float:
        """The seconds since the first update in which the federation had a leader."""
        return 0.0 if self.started_s is None else max(0.0, self.elapsed_s - self.started_s)

    @property
    def weights(self) -> Weights:
        """The model's tensors by name; float32 tensors are views of this record's arrays."""
        return self.layout.restore(FlatWeights(self.vector, self.statistics, self.integers))

    def without_weights(self) -> ModelVersion:
        """Return this record without what is as large as the model."""
        return replace(self, vector=no_values(), statistics=no_values(), integers=b"")

    @property
    def updates(self) -> int:
        """The number of updates that this version contains, from the first version on."""
        return sum(contributor.updates for contributor in self.contributors.values())


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The server optimizer's memory at one version: float32 vectors of the model's size by name."""

    federation: str
    rank: Rank
    vectors: Mapping[str, Vector]


@dataclass(frozen=True, slots=True)
class Hello:
    """What everyone sends through the updates queue when it connects.

    Of the aggregators, whoever receives the first one leads. A worker or evaluator learns at once, and not
    after hours of training, whether the broker lets it publish in its name.
    """

    federation: str
    name: str
