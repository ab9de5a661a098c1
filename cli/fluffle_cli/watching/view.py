"""What is known of a federation at one moment, to be shown and judged. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Final, Self

from fluffle.plan import Plan
from fluffle.policy_faults import PolicyFault
from fluffle.privacy.plan import PrivacyState
from fluffle.record import Contributor, Evaluation, Folded, ModelVersion, Rank, deciding
from fluffle.sealed.part import sealed_part
from fluffle.sealed.plan import SealedState
from fluffle.secure.plan import LastSum
from fluffle.sites import MEAN, WORST, SiteReport
from fluffle_aggregator.goal import Yardstick, parse_yardstick
from fluffle_cli.history import EvaluatedVersion
from fluffle_cli.words import count

# The first of these that an evaluation has is shown, unless something says which metric counts.
USUAL_METRICS: Final = ("accuracy", f"{MEAN}accuracy", f"{WORST}accuracy", "loss", f"{MEAN}loss")


@dataclass(frozen=True, slots=True)
class SurveyProgress:
    """How many workers have answered to the federation's survey, of how many that end it (0: time does)."""

    answered: int
    wanted: int
    is_open: bool

    @property
    def in_words(self) -> str:
        """Return "3 of 4 workers have answered"."""
        if self.wanted:
            return f"{self.answered} of {count(self.wanted, 'worker has', 'workers have')} answered"
        return f"{count(self.answered, 'worker has', 'workers have')} answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version's record without the model, in plain types; one line of `metrics.jsonl`.

    The fields are those of ModelVersion, but for `parameters`, the number of the model's trained parameters,
    and `sealed_parameters`, of those that are encrypted. Of the survey there is only how far it is.
    """

    federation: str
    version: int
    term: int
    terms: Sequence[Rank] = ()
    committed_at: float = 0.0
    strategy: str = ""
    plan: Plan = field(default_factory=Plan)
    parameters: int = 0
    updates: int = 0
    rejected: int = 0
    evaluation: Evaluation | None = None
    site_evaluation: Evaluation | None = None
    best: Evaluation | None = None
    best_by: str = ""
    target_held: int = 0
    elapsed_s: float = 0.0
    training_s: float = 0.0
    average_decay: float = 0.0
    closing: str = ""
    finished: str = ""
    survey: SurveyProgress | None = None
    last_sum: LastSum | None = None
    privacy: PrivacyState | None = None
    sealed: SealedState | None = None
    sealed_parameters: int = 0
    folded: Sequence[Folded] = ()
    contributors: Mapping[str, Contributor] = field(default_factory=dict)
    sites: Mapping[str, SiteReport] = field(default_factory=dict)

    @classmethod
    def of(cls, record: ModelVersion) -> Self:
        """Take from a record what is worth knowing without the model."""
        names = {each.name for each in fields(cls)} - {"parameters", "sealed_parameters", "survey"}
        known = {name: getattr(record, name) for name in names}
        one = record.survey
        survey = SurveyProgress(len(one.answered), one.wanted, one.is_open) if one else None
        plan, layout = record.plan.sealed, record.layout
        sealed = sealed_part(layout, plan.only).size if plan else 0
        return cls(parameters=layout.size, sealed_parameters=sealed, survey=survey, **known)

    def epsilon_of(self, worker: str) -> float | None:
        """Return the epsilon that a worker has spent; None without differential privacy."""
        plan = self.plan.privacy
        return plan.epsilon_after(self.privacy.of(worker).updates) if plan and self.privacy else None

    @property
    def rank(self) -> Rank:
        """The order of this version among all."""
        return Rank(self.term, self.version)

    @property
    def deciding_evaluation(self) -> Evaluation | None:
        """The newest of those evaluations by which the best version is chosen."""
        return deciding(self.plan, self.evaluation, self.site_evaluation)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStates:
    """What waits on the broker: updates that no aggregator holds yet, and refused messages.

    `absent_helpers` are the helpers of secure aggregation that have opened the last sum, and work no more.
    """

    updates_waiting: int = 0
    aggregator_active: bool = False
    rejected_waiting: int = 0
    absent_helpers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker: what it has given to the newest version, and what it says of itself.

    `state` is a word, and mostly a detail behind a colon; empty where nothing is known. `seen_s` is how many
    seconds ago something was heard of it, and `round_s` how long its last round took, in which it trained
    `steps` minibatches of `batch_size` examples; None is unknown.
    With secure aggregation nothing is known of minibatches and examples. `weight_share` is its
    part of the weight of all applied updates, and `example_share` its part of the examples of all workers
    that have given an update. `model_share` is the part of the trained parameters that its last update had: 1
    unless it trains the last layers alone. All three are from 0 to 1. `refusal` says why its last refused
    message was refused. `epsilon` is what it has spent of its privacy, None without a promise. `losses` are
    the training losses of its rounds, and `loss` the last one; they may be NaN. `rival` is the process that
    lately wanted its name; with `is_of_two` two processes send updates under the name.
    """

    name: str
    state: str = ""
    seen_s: float | None = None
    round_s: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    updates: int = 0
    examples: int | None = None
    mean_staleness: float = 0.0
    weight_share: float = 0.0
    example_share: float | None = None
    model_share: float = 1.0
    epsilon: float | None = None
    rejected: int = 0
    refusal: str = ""
    loss: float | None = None
    losses: Sequence[float] = ()
    rival: str = ""
    is_of_two: bool = False


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened in some seconds, which end at `at`; `commit_s` is None when nothing was committed."""

    at: float
    seconds: float
    updates: int = 0
    waiting: int = 0
    commit_s: float | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """How a term began. Of one that began before anybody listened, only what the record says is known."""

    term: int
    version: int
    leader: str | None = None
    at: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that happened to a part, besides versions: when (Unix time in seconds), to which, and what.

    Of a refused message `name` is its sender and `reason` the word why; `detail` is a sentence.
    """

    at: float
    name: str
    what: str
    reason: str = ""
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class FederationView:
    """A federation at one moment; `taken_at` is Unix time in seconds.

    `newest` is None before the first version, and `queues` and `policy_faults` where nobody could look at
    them. `evaluation` and `best` are the newest and the best evaluation of those that
    decide, an evaluator's or those by all sites, and `evaluations` all that were
    seen. `updates_per_s` is the rate of the last seconds, or since version 0; None when nobody can say.
    `parts` are the states of aggregators and evaluators by name, and `helpers` those of the helpers of secure
    aggregation. What follows them was counted from events, and knows nothing of what happened while nobody
    listened; `survey_answers` is how many workers were heard to have answered a survey, and `sum_waits` what
    secure aggregation waits for, empty if it does not. `contradicting` are the helpers that answered
    otherwise than others, the last time that some did. `knows_standbys` says whether RabbitMQ was asked.
    """

    federation: str
    taken_at: float
    newest: Version | None = None
    queues: QueueStates | None = None
    policy_faults: Sequence[PolicyFault] | None = None
    trouble: str = ""
    workers: Mapping[str, Worker] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    helpers: Mapping[str, str] = field(default_factory=dict)
    evaluation: EvaluatedVersion | None = None
    best: EvaluatedVersion | None = None
    evaluations: Sequence[EvaluatedVersion] = ()
    updates_per_s: float | None = None
    leader: str = ""
    standbys: Sequence[str] = ()
    knows_standbys: bool = False
    terms: Sequence[Term] = ()
    activity: Sequence[Activity] = ()
    commit_s: float | None = None
    sent_bytes: int = 0
    plain_bytes: int = 0
    staleness: Sequence[tuple[str, int, float | None]] = ()
    reasons: Mapping[str, int] = field(default_factory=dict)
    refusals: Sequence[Happening] = ()
    after_the_end: int = 0
    survey_answers: int = 0
    sum_waits: str = ""
    contradicting: str = ""

    @property
    def open_survey(self) -> SurveyProgress | None:
        """How far the survey is while it is open; None when none is."""
        survey = self.newest.survey if self.newest else None
        if survey is None or not survey.is_open:
            return None
        return replace(survey, answered=max(survey.answered, self.survey_answers))

    @property
    def finished(self) -> str:
        """Why the federation has finished; empty until then."""
        return self.newest.finished if self.newest else ""

    @property
    def is_over(self) -> bool:
        """Whether no more updates are taken."""
        return bool(self.newest and (self.newest.closing or self.newest.finished))

    @property
    def yardstick(self) -> Yardstick | None:
        """By what versions are compared; None when nothing is best."""
        return parse_yardstick(self.newest.best_by) if self.newest and self.newest.best_by else None

    @property
    def metric(self) -> str | None:
        """The metric to show: the one that says what is best, else the usual one; None when there is none."""
        counts = self.yardstick.metric if self.yardstick else None
        return metric_to_show(self.evaluation.metrics, counts) if self.evaluation else counts

    @property
    def evaluated_in_words(self) -> str:
        """Return "version 12", with the word "averaged" if the average of the versions was evaluated."""
        number = self.evaluation.version if self.evaluation else 0
        # Version 0 has no average.
        is_averaged = number and self.newest and self.newest.average_decay
        return f"version {number}, averaged" if is_averaged else f"version {number}"

    @property
    def waits_for_all(self) -> bool:
        """Whether each version waits for all workers (synchronous rounds)."""
        return bool(self.newest and self.newest.plan.one_update_per_version)


def metric_to_show(metrics: Mapping[str, float], wanted: str | None = None) -> str | None:
    """Choose the metric that stands for an evaluation; None when it has none."""
    names = [name for name in (wanted, *USUAL_METRICS) if name in metrics]
    return names[0] if names else next(iter(metrics), None)
