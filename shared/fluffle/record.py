"""The record of a model version: the model, and all that the next leader needs. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

from fluffle.compression import CodecName, CompressedVector
from fluffle.fields import (
    MAX_METRIC_NAME_LENGTH,
    AnyNumber,
    Count,
    FieldError,
    Magnitude,
    Metrics,
    Name,
    Positive,
    ShortText,
    at_most,
    must,
    text,
)
from fluffle.model import FlatWeights, Layout, Vector, Weights, no_values
from fluffle.plan import Plan
from fluffle.privacy.plan import PrivacyState
from fluffle.sealed.plan import SealedState
from fluffle.secure.plan import LastSum
from fluffle.sites import SiteReport
from fluffle.survey.messages import Survey
from fluffle.update import Applied, AppliedUpdates, UpdateId

# An odd number of norms, so that the median is one of them.
MAX_NORMS = 101
# The number of updates over which a worker's share is counted, where FedAsync limits it.
SHARE_WINDOW = 50
MAX_REFUSAL_LENGTH = 200
MAX_REASON_LENGTH = 256
Reason = Annotated[str, text(MAX_REASON_LENGTH)]
# Of the trained parameters, the part that an update has.
Share = Annotated[float, must(lambda number: 0 < number <= 1, "{} is not above 0 and at most 1")]
Decay = Annotated[float, must(lambda number: 0 <= number < 1, "{} is not at least 0 and below 1")]


@dataclass(frozen=True, slots=True)
class Folded:
    """One update that a version contains, with its staleness and its weight.

    `published_at` is by the worker's clock and `received_at` by the aggregator's: Unix time in seconds, 0 if
    unknown. `loss` is the worker's training loss, None where it reports none, and `train_s` the seconds that
    its round took, in which it trained `steps` minibatches of `batch_size` examples; a size of 0 is unknown.
    `share` is the part of the trained parameters that the update has: 1 unless its worker trains the last
    layers alone. These seven are for people, never for decisions.
    """

    id: UpdateId
    base_version: Count
    staleness: Count
    weight: float
    published_at: float = 0.0
    received_at: float = 0.0
    loss: AnyNumber | None = None
    train_s: float = 0.0
    steps: Count = 0
    batch_size: Count = 0
    share: Share = 1.0


@dataclass(frozen=True, slots=True)
class Contributor:
    """What one worker has sent so far, even if all of it was refused.

    `examples`, `loss` and `share` are those of its last update; the loss may be NaN, and is None where the
    worker reports none. `weight_sum` is the weight of its updates that count: of its last one where the
    strategy keeps each worker's last update, and else of all. `refusal` says why its last refused message was
    refused, and is empty if none was. Messages that come after the end are not counted. `last_update_at` is
    Unix time in seconds by the aggregator's clock. It, `loss`, `refusal` and `share` are for people, never
    for decisions. `local_work` is that of its last update, by which deltas are normalised; 0 if unknown.
    `suspected` counts the sums of secure aggregation with an update of this worker that cannot be honest.
    """

    updates: Count = 0
    examples: Count = 0
    staleness_sum: Count = 0
    weight_sum: float = 0.0
    rejected: Count = 0
    last_update_at: float = 0.0
    loss: AnyNumber | None = None
    refusal: Annotated[str, text(MAX_REFUSAL_LENGTH)] = ""
    local_work: Magnitude = 0.0
    share: Share = 1.0
    suspected: Count = 0

    @property
    def mean_staleness(self) -> float:
        """The mean over this worker's applied updates, in versions."""
        return self.staleness_sum / self.updates if self.updates else 0.0


@dataclass(frozen=True, slots=True)
class PlateauState:
    """How many evaluations in a row were no better than the best, and how often the rate was lowered.

    It is used when the learning rate's schedule waits for a plateau of the evaluations.
    """

    misses: Count = 0
    drops: Count = 0


@dataclass(frozen=True, slots=True)
class EarlyStopState:
    """The last value that was better by more than the least gain, and how many evaluations followed it."""

    reference: AnyNumber | None = None
    misses: Count = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluator's metrics of one version on held-out data, or those of all sites on their own data.

    Those of all sites are named like sites.accuracy and worst.accuracy. Each site has evaluated the newest
    version that it had; `version` is the median of these, by examples.
    """

    federation: ShortText
    evaluator: Name
    version: Count
    metrics: Metrics
    evaluate_s: float = 0.0


def deciding(plan: Plan, by_evaluator: Evaluation | None, by_sites: Evaluation | None) -> Evaluation | None:
    """Return the evaluation that decides: an evaluator's, unless the goal is measured at the sites."""
    return by_sites if plan.sites_decide or by_evaluator is None else by_evaluator


def not_finite(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics that are NaN or infinite."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """The order of versions: a higher term wins, whatever the version number."""

    term: Positive
    version: Count

    def __str__(self) -> str:
        return f"{self.version} (term {self.term})"


def is_in_history(base: Rank, terms: Sequence[Rank], newest_version: int) -> bool:
    """Return whether a version is in the linear history that these terms form.

    A leader that was frozen and wakes up may publish one more version, which no later version contains.
    """
    ends = [*(later.version for later in terms[1:]), newest_version]
    return any(
        began.term == base.term and began.version <= base.version <= end
        for began, end in zip(terms, ends, strict=True)
    )


def _require_terms(terms: tuple[Rank, ...]) -> None:
    if not terms or any(
        later.term <= one.term or later.version < one.version for one, later in pairwise(terms)
    ):
        raise FieldError("expected one or more, in ascending order")


def version_size_bytes(layout: Layout, *, is_averaged: bool, sealed_bytes: int = 0) -> int:
    """Return the number of bytes that a version of this layout takes in its record, without the header.

    `sealed_bytes` are those of the sealed sum, if there is one.
    """
    return 4 * layout.size * (1 + is_averaged) + sealed_bytes + layout.beside_vector_size_bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelVersion:
    """One version of the global model.

    `version` counts the steps of the global model since version 0; not every step is published. `vector`,
    `statistics` and `integers` are the model as `layout` describes it. `parent` is the digest of the record
    published before, empty for the first. `terms` has, for each term so far, the version from which its
    leader continued. `folded` are the updates applied since the parent. `norms` are the L2 norms of what the
    last MAX_NORMS updates would have changed, oldest first; empty unless norms are limited. `window` has the
    worker and the weight of the last updates, oldest first; empty unless FedAsync limits a worker's share.

    `elapsed_s` counts the seconds in which the federation had a leader; `started_s` is its value at the first
    update, None before that. `best_by` is the metric and direction by which `best` is the best evaluation,
    such as "accuracy:max". `not_finite_held` counts the evaluations in a row in which what decides was not
    finite. `closing` says why the federation takes no more updates while it waits for the evaluation of its
    last model; `finished` says why it has ended. Both are empty until then. `moments_checksum` names the
    strategy's moments beside this record in the head queue, None when there are none. `survey` is that of the
    sites' data, None without one.

    `sites` has the newest evaluation of each site, for as long as its worker is at work. `site_evaluation` is
    the newest evaluation by all of them, and `site_reports` counts the reports since then. `early_stop` is
    used when the federation ends once nothing gets better.

    `average` is the running average of the vectors of all versions up to this one, with the decay
    `average_decay`. It is empty, and the decay 0, unless versions are averaged; version 0 has none.

    `last_sum` is the newest sum of secure aggregation, None before the first one. `given_up` are the updates
    of those sums of its epoch that nobody opened, or that were unsound: helpers never open them again. The
    first `unmasked_runs` runs of `applied` are of before secure aggregation; the others are forgotten when
    another epoch begins.

    `privacy` is what differential privacy has released so far, None without it.

    In a sealed federation the sealed elements of `vector` are those of version 0, and `sealed_sum` has the
    packed ciphertexts of the sum of all updates since then, empty before the first one. `sealed` is what is
    known of it without the key; None where nothing is sealed.

    What is read from the stream may be a rounded copy of a record: its vector and average were sent in
    `codec`, and `copy_of` is the digest of the record, which is empty for a record itself.
    """

    federation: ShortText
    term: Positive
    version: Count
    parent: ShortText
    terms: Annotated[tuple[Rank, ...], _require_terms]
    layout: Layout
    plan: Plan
    strategy: Reason
    vector: Vector
    average: Vector = field(default_factory=no_values)
    statistics: Vector = field(default_factory=no_values)
    integers: bytes = b""
    applied: Applied = field(default_factory=AppliedUpdates)
    folded: tuple[Folded, ...] = ()
    norms: Annotated[tuple[Magnitude, ...], at_most(MAX_NORMS)] = ()
    contributors: Mapping[Name, Contributor] = field(default_factory=dict)
    rejected: Count = 0
    evaluation: Evaluation | None = None
    best: Evaluation | None = None
    best_by: Annotated[str, text(MAX_METRIC_NAME_LENGTH + len(":max"))] = ""
    target_held: Count = 0
    not_finite_held: Count = 0
    plateau: PlateauState = field(default_factory=PlateauState)
    early_stop: EarlyStopState = field(default_factory=EarlyStopState)
    sites: Mapping[Name, SiteReport] = field(default_factory=dict)
    site_reports: Count = 0
    site_evaluation: Evaluation | None = None
    window: tuple[tuple[Name, float], ...] = ()
    elapsed_s: float = 0.0
    started_s: float | None = None
    committed_at: float = 0.0
    closing: Reason = ""
    finished: Reason = ""
    moments_checksum: Count | None = None
    survey: Survey | None = None
    average_decay: Decay = 0.0
    codec: CodecName = "float32"
    copy_of: ShortText = ""
    last_sum: LastSum | None = None
    given_up: Applied = field(default_factory=AppliedUpdates)
    unmasked_runs: Count = 0
    privacy: PrivacyState | None = None
    sealed: SealedState | None = None
    sealed_sum: bytes | memoryview = b""

    @property
    def rank(self) -> Rank:
        """The order of this version among all."""
        return Rank(self.term, self.version)

    @property
    def is_over(self) -> bool:
        """Whether no more updates are taken."""
        return bool(self.closing or self.finished)

    @property
    def deciding_evaluation(self) -> Evaluation | None:
        """The newest of those evaluations by which the best version is chosen."""
        return deciding(self.plan, self.evaluation, self.site_evaluation)

    @property
    def training_s(self) -> float:
        """The seconds since the first update in which the federation had a leader."""
        return 0.0 if self.started_s is None else max(0.0, self.elapsed_s - self.started_s)

    @property
    def flat(self) -> FlatWeights:
        """The values of the model's tensors: this record's arrays."""
        return FlatWeights(self.vector, self.statistics, self.integers)

    @property
    def weights(self) -> Weights:
        """The model's tensors by name; float32 tensors are views of this record's arrays."""
        return self.layout.restore(self.flat)

    @property
    def weights_to_evaluate(self) -> Weights:
        """The tensors that are evaluated and exported: the average of the versions where there is one.

        Statistics and integers are always this version's own: statistics are averages already.
        """
        vector = self.average if self.average_decay else self.vector
        return self.layout.restore(FlatWeights(vector, self.statistics, self.integers))

    @property
    def payload_size_bytes(self) -> int:
        """The number of bytes of this version's model, and average, in its record."""
        sealed_bytes = len(self.sealed_sum)
        return version_size_bytes(self.layout, is_averaged=self.average_decay > 0, sealed_bytes=sealed_bytes)

    @property
    def updates(self) -> int:
        """The number of updates that this version contains, from the first version on."""
        return sum(contributor.updates for contributor in self.contributors.values())


@dataclass(frozen=True, slots=True, eq=False)
class CachedUpdate:
    """A worker's last update, or the mean of its last `count` ones, as a strategy keeps it for later steps.

    `weight` is what it counts among all that are kept. `at` is the number of updates that the model contained
    when this one was new. `vector` is of the model's size, in `codec`; its first elements are not there where
    the worker trains the last layers alone. `stage` is for strategies that keep
    updates in stages, and 0 in others. `used` is how far the model has moved along it since it came, in its
    own length, for strategies that use it up, and 0 in others.
    """

    worker: Name
    weight: Magnitude
    at: Count
    codec: CodecName
    vector: CompressedVector
    count: Count = 1
    stage: Count = 0
    used: AnyNumber = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class MomentsRecord:
    """A strategy's memory at one version.

    `vectors` are a server optimizer's moments by name, float32, and `cached` the workers' updates that are
    kept; all are of the model's size. `survey` are the packed sums of a survey that is open, empty without
    answers. Without all of these, it only claims a rank.
    """

    federation: ShortText
    rank: Rank
    vectors: Mapping[str, Vector]
    cached: tuple[CachedUpdate, ...] = ()
    survey: bytes = b""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to go on with."""
        return not (self.vectors or self.cached or self.survey)


@dataclass(frozen=True, slots=True)
class Hello:
    """What every part sends through the updates queue when it connects.

    The aggregator that receives the first one leads. A worker or evaluator learns at once, and not after
    hours of training, whether the broker lets it publish in its name.
    """

    federation: ShortText
    name: Name
