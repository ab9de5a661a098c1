"""What tests are made of, with defaults that matter to no test: say only what the test is about."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np

from fluffle.broker import Delivery
from fluffle.codecs.floats import Float32Vector
from fluffle.codecs.masked import MaskedVector
from fluffle.compression import CompressedVector, compress, decompressed
from fluffle.model import Layout, TensorSpec, Vector
from fluffle.plan import Plan, Sends
from fluffle.record import Evaluation, ModelVersion, Rank
from fluffle.secure.modulus import Modulus
from fluffle.sites import SiteEvaluation, SiteMetric
from fluffle.survey.shape import SurveyShape
from fluffle.topology import topology_of
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_aggregator.commit_schedule import CommitSchedule, prefetch_of
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.gates.gate import Incoming, Refusal
from fluffle_aggregator.gates.limits import Limits, gates_of
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.head import Head
from fluffle_aggregator.intake import TakenIn, TurnedDown, take_in
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_aggregator.survey import NO_AIM, SurveyAim

FEDERATION = "digits"
SIZE = 4


def a_vector(*values: float) -> Vector:
    """Return a float32 vector."""
    return np.array(values, np.float32)


def float32s(vector: Vector) -> CompressedVector:
    """Return a vector as it travels in float32."""
    return Float32Vector.of(vector)


def values_of(vector: CompressedVector) -> list[float]:
    """Return the elements of a vector that travelled."""
    return [float(value) for value in decompressed(vector)]


def a_layout(size: int = SIZE) -> Layout:
    """Return the layout of a model with one tensor."""
    return Layout((TensorSpec("dense/kernel", (size,), "float32"),))


def an_update(
    worker: str = "w1",
    sequence: int = 1,
    *,
    run: str = "r1",
    base_version: int = 0,
    base_term: int | None = None,
    values: Sequence[float] = (1.0,) * SIZE,
    sends: Sends = "delta",
    examples: int = 10,
    codec: str = "float32",
    layout: Layout | None = None,
    federation: str = FEDERATION,
    integers: bytes = b"",
    loss: float | None = None,
    steps: int = 1,
) -> WeightUpdate:
    """Return an update that any strategy for deltas admits.

    Version 0 is published under term 1 in these tests, and the leader makes the others under term 2.
    """
    if base_term is None:
        base_term = 2 if base_version else 1
    return WeightUpdate(
        federation=federation,
        id=UpdateId(worker, run, sequence),
        base_term=base_term,
        base_version=base_version,
        layout_digest=(layout or a_layout()).digest,
        sends=sends,
        codec=codec,
        vector=compress(codec, a_vector(*values), np.random.default_rng(0)),
        integers=integers,
        examples=examples,
        steps=steps,
        loss=loss,
    )


def a_version(
    version: int = 0,
    *,
    term: int = 1,
    values: Sequence[float] = (0.0,) * SIZE,
    layout: Layout | None = None,
    plan: Plan | None = None,
    finished: str = "",
) -> ModelVersion:
    """Return the record of a version."""
    return ModelVersion(
        federation=FEDERATION,
        term=term,
        version=version,
        parent="",
        terms=tuple(Rank(each, 0) for each in range(1, term + 1)),
        layout=layout or a_layout(),
        plan=plan or Plan(),
        strategy="fedbuff",
        vector=a_vector(*values),
        integers=b"",
        finished=finished,
    )


def a_masked_update(
    worker: str = "w1", sequence: int = 1, *, size: int = SIZE, bits: int = 24, revision: int = 0
) -> WeightUpdate:
    """Return a masked update of so many numbers, which nobody can take the masks off."""
    plain = an_update(worker, sequence)
    numbers = np.random.default_rng(sequence).integers(0, 2**bits, size, np.uint32)
    vector = MaskedVector.masking(Modulus(bits), numbers)
    said = replace(plain, loss=None, examples=0, steps=0)
    return replace(said, codec=f"masked{bits}", vector=vector, epoch=1, revision=revision)


def a_masked_answer(worker: str = "w1", *, names: tuple[str, ...] = ("age", "pulse")) -> WeightUpdate:
    """Return a masked answer to a survey, which nobody can take the masks off."""
    shape = SurveyShape(names, (False,) * len(names), 2)
    return replace(a_masked_update(worker, size=5, bits=32, revision=1), shape=shape)


def an_evaluation(
    version: int = 0,
    metrics: Mapping[str, float] | None = None,
    *,
    evaluator: str = "e1",
    federation: str = FEDERATION,
) -> Evaluation:
    """Return what an evaluator reports."""
    return Evaluation(federation, evaluator, version, metrics or {})


def a_site_evaluation(
    worker: str = "w1",
    version: int = 0,
    value: float = 0.5,
    *,
    metric: str = "accuracy",
    examples: int = 10,
    term: int | None = None,
    federation: str = FEDERATION,
    tuned: float | None = None,
) -> SiteEvaluation:
    """Return what a worker reports of one metric at its site, a mean; terms are those of `an_update`."""

    def of(mean: float) -> tuple[SiteMetric, ...]:
        return (SiteMetric(metric, "mean", mean * examples, examples),)

    term = term or (2 if version else 1)
    after = () if tuned is None else of(tuned)
    return SiteEvaluation(federation, worker, term, version, examples, of(value), tuned=after)


def a_strategy(
    name: str = "fedbuff",
    *,
    buffer_size: int = 2,
    mixing: float = 0.5,
    staleness: str = "polynomial",
    optimizer: str = "sgd",
    learning_rate: float = 1.0,
    weigh_by: str = "none",
    rule: str = "mean",
    normalize_steps: bool = False,
    throttle: float = 1.0,
) -> Strategy:
    """Return a strategy; settings that it does not read are passed over."""
    settings = {
        "buffer_size": buffer_size,
        "mixing": mixing,
        "staleness": staleness,
        "weigh_by": weigh_by,
        "server_optimizer": optimizer,
        "server_learning_rate": learning_rate,
        "rule": rule,
        "normalize_steps": normalize_steps,
        "throttle": throttle,
    }
    kind = STRATEGIES[name]
    return kind.model_validate({key: settings[key] for key in settings if key in kind.model_fields}).make()


def a_model(
    strategy: Strategy | None = None, *, record: ModelVersion | None = None, goal: Goal | None = None
) -> GlobalModel:
    """Return the model that a leader holds."""
    strategy = strategy or a_strategy()
    return GlobalModel(record or a_version(), strategy=strategy, plan=Plan(), goal=goal or Goal(), term=1)


def passed(update: WeightUpdate, model: GlobalModel, limits: Limits | None = None) -> Incoming | Refusal:
    """Pass an update from its own worker through the gates of a model, and leave the model as it is."""
    topology = topology_of(FEDERATION)
    way_in = topology.updates_in.name
    delivery = Delivery(1, encode_update(update), user=update.id.worker, exchange=way_in)
    gates = gates_of(limits or Limits(), model.strategy, topology)
    taken = take_in(delivery, deepcopy(model), gates, now=0.0)
    if isinstance(taken, TurnedDown):
        return taken.refusal
    assert isinstance(taken, TakenIn)
    return taken.incoming


def refusal(update: WeightUpdate, model: GlobalModel, limits: Limits | None = None) -> Refusal | None:
    """Return why the gates of a model let an update not pass, or None when they do."""
    found = passed(update, model, limits)
    return found if isinstance(found, Refusal) else None


def a_config(
    strategy: Strategy | None = None,
    *,
    name: str = "a1",
    limits: Limits | None = None,
    commit_schedule: CommitSchedule | None = None,
    goal: Goal | None = None,
    first: ModelVersion | None = None,
    average_decay: float = 0.0,
    survey_aim: SurveyAim = NO_AIM,
    try_out: Callable[[GlobalModel, Delivery], str] = lambda _model, _delivery: "",
) -> AggregatorConfig:
    """Return what an aggregator is told when it starts."""
    strategy, commit_schedule = strategy or a_strategy(), commit_schedule or CommitSchedule()
    plan = Plan(
        sends=strategy.sends,
        one_update_per_version=strategy.one_update_per_version,
        sites_decide=bool(goal and goal.by_sites),
    )

    def continue_from(head: Head) -> GlobalModel:
        return GlobalModel(
            head.record,
            head.moments,
            strategy=strategy,
            plan=plan,
            goal=goal or Goal(),
            term=head.term + 1,
            average_decay=average_decay,
            survey_aim=survey_aim,
        )

    return AggregatorConfig(
        name=name,
        topology=topology_of(FEDERATION),
        limits=limits or Limits(),
        commit_schedule=commit_schedule,
        prefetch=prefetch_of(strategy, commit_schedule),
        first_version=lambda: replace(first or a_version(), plan=plan),
        continue_from=continue_from,
        try_out=try_out,
    )
