"""Running an aggregator from Python: in a notebook, a thread, or inside another framework.

    from fluffle_aggregator.running import run_aggregator

    result = run_aggregator(task, federation="hospital", target="accuracy>=0.9")

No signal handler is set, any thread will do, and several may run in one process. `fluffle aggregator` does
the same for a task that is named by its module.
"""

import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from structlog.contextvars import bound_contextvars

from fluffle.broker import Broker
from fluffle.connection import Connector
from fluffle.event_sink import ReportingSink
from fluffle.logs import get_logger
from fluffle.metrics import metered
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.policy_faults import Sizes
from fluffle.policy_watch import PolicyWatch, policy_watch_of
from fluffle.privacy.plan import PrivacyPlan
from fluffle.record import ModelVersion, version_size_bytes
from fluffle.sealed.parameters import bytes_of
from fluffle.sealed.part import sealed_part
from fluffle.secure.plan import SecurePlan
from fluffle.settings import load_arguments
from fluffle.survey.messages import Survey
from fluffle.task import Task, name_of_task
from fluffle.topology import topology_of
from fluffle_aggregator.commit_schedule import prefetch_of
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.gates.limits import gates_of
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.head import Head
from fluffle_aggregator.initial_model import InitialModel, first_version, initial_model
from fluffle_aggregator.private.settings import same_privacy_plan
from fluffle_aggregator.schedules import parse_schedule
from fluffle_aggregator.sealed.large_blocks import give_back_large_blocks
from fluffle_aggregator.sealed.sealed_model import SealedModel
from fluffle_aggregator.sealed.settings import same_sealed_plan
from fluffle_aggregator.secure.state import SecureState, require_newest_epoch
from fluffle_aggregator.service import AggregatorResult, serve
from fluffle_aggregator.settings import FEWEST_WORKERS, AggregatorSettings
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_aggregator.surveying import MOST_HELD
from fluffle_aggregator.trial import try_out

if TYPE_CHECKING:
    from fluffle_aggregator.private.starting import PrivateStart

log = get_logger(__name__)


def run_aggregator(
    task: Task | None = None, *, stop: threading.Event | None = None, **settings: object
) -> AggregatorResult:
    """Be an aggregator until the federation has finished, or until `stop` is set.

    The seeded weights of `task` become version 0 of a new federation; with `initial_model` a file does, and
    neither is needed to go on with a federation that exists. `settings` are those of `fluffle aggregator`,
    such as `federation`, `broker_url`, `strategy` and `target`; what is not given comes from the environment
    (FLUFFLE_BROKER_URL), fluffle.toml and the defaults. Raises ConfigError for wrong settings, TaskError for
    a mistake in the task, LayoutError when the running federation's model is another than the task's, and
    BrokerError when the broker refuses it for good or is not there for `connect_timeout_s`.
    """
    named = {} if task is None else {"task": name_of_task(task)}
    checked = load_arguments(AggregatorSettings, {**named, **settings})
    with bound_contextvars(**checked.log_fields()):
        return aggregate(checked, stop or threading.Event(), task)


def aggregate(
    settings: AggregatorSettings, stop: threading.Event, task: Task | None = None
) -> AggregatorResult:
    """Be an aggregator as the settings say; see `run_aggregator`."""
    if settings.sealed:
        give_back_large_blocks()
    policies = policy_watch_of(settings, settings.management_url)
    name = f"{settings.federation}/aggregator/{settings.name}"

    def prepare(_: Broker) -> None:
        # Now that RabbitMQ is there; with a policy that loses messages no aggregator starts.
        policies.require_safe_start()

    connector = Connector(settings, name=name, stop=stop, prepare=prepare)
    with initial_model(settings, stop, task) as model:
        config = config_of(settings, policies, model)
        with (
            metered(
                config.event_sink,
                host=settings.metrics_host,
                port=settings.metrics_port,
                federation=settings.federation,
                role="aggregator",
                name=settings.name,
            ) as event_sink,
            policies.watching(),
        ):
            return serve(
                replace(config, event_sink=event_sink),
                connector.connect,
                stop,
                patience_s=settings.connect_timeout_s,
            )


def config_of(settings: AggregatorSettings, policies: PolicyWatch, initial: InitialModel) -> AggregatorConfig:
    """Return what the settings ask of an aggregator; ConfigError when they do not go together."""
    strategy, goal = settings.make_strategy(), settings.make_goal()
    topology, commit_schedule = topology_of(settings.federation), settings.make_commit_schedule(strategy)
    survey_aim = settings.make_survey_aim()
    registry = settings.registry_watch(
        settings.federation,
        strategy.buffer_size,
        has_one_of_each=strategy.one_update_per_version or settings.dp == "distributed",
    )

    private = settings.begin_privately(
        strategy.buffer_size, partial(settings.shared_sums, strategy.buffer_size)
    )

    def plan(privacy: PrivacyPlan | None, size: int) -> Plan:
        made = settings.make_plan(strategy, registry.registry.epoch if registry else 1, privacy, size=size)
        if made.secure is None or registry is None:
            return made
        return replace(made, secure=made.secure.of_keys(registry.registry.keys_digest))

    def require_room(layout: Layout, workers: int = 0) -> None:
        settings.require_room(strategy, layout)
        # Of more workers than fit into a message, those that came longest ago are forgotten.
        moments_bytes = min(
            strategy.moments_bytes(layout.size, workers=max(FEWEST_WORKERS, workers)),
            settings.max_message_bytes,
        )
        sealed = settings.make_sealed_plan(strategy)
        version_bytes = version_size_bytes(
            layout,
            is_averaged=settings.average_versions > 0,
            sealed_bytes=bytes_of(sealed_part(layout, sealed.only).size) if sealed else 0,
        )
        policies.require_safe(Sizes(version_bytes, moments_bytes))

    def begin() -> ModelVersion:
        file = initial.read()
        require_room(file.layout)
        if table := file.layout.table:
            log.info("the model is of a table", **table.in_words)
        survey = Survey(survey_aim.wanted) if survey_aim.is_asked else None
        return first_version(
            file,
            federation=settings.federation,
            plan=plan(private.plan_for(file.layout) if private else None, file.layout.size),
            strategy=str(strategy),
            survey=survey,
            privacy=private.first_state(file.layout) if private else None,
        )

    def secure_state(record: ModelVersion, secure: SecurePlan | None) -> SecureState | None:
        if secure is None or registry is None:
            return None
        return SecureState(
            secure,
            record,
            buffer_size=strategy.buffer_size,
            fewest_workers=settings.secure_min_workers,
            registered=frozenset(registry.registry.workers),
            survey_size=survey_aim.wanted if record.survey and record.survey.is_open else 0,
        )

    def compare(record: ModelVersion) -> None:
        initial.compare(record.layout)
        promised_before(settings, private, strategy, record)

    def continue_from(head: Head) -> GlobalModel:
        layout = head.record.layout
        require_room(layout, len(head.record.contributors))
        initial.compare(layout)
        asked = plan(promised_before(settings, private, strategy, head.record), layout.size)
        require_newest_epoch(asked.secure, head.record.plan.secure)
        return GlobalModel(
            head.record,
            head.moments,
            strategy=strategy,
            plan=asked,
            goal=goal,
            term=head.term + 1,
            schedule=parse_schedule(settings.learning_rate_schedule),
            cached_bytes=settings.room_for_cache(strategy, layout),
            average_decay=settings.average_versions,
            survey_aim=survey_aim,
            secure=secure_state(head.record, asked.secure),
            private=private.sums_of(head.record, buffer_size=strategy.buffer_size) if private else None,
            sealed=SealedModel.of(head.record, asked.sealed),
        )

    # Refuse settings and limits that have no meaning for the strategy before anything starts.
    plan(None, 0)
    gates_of(settings, strategy, topology)
    return AggregatorConfig(
        name=settings.name,
        topology=topology,
        limits=settings,
        commit_schedule=commit_schedule,
        prefetch=max(
            prefetch_of(strategy, commit_schedule, is_secure=registry is not None),
            MOST_HELD + 2 if survey_aim.is_asked else 0,
            # Masked answers are held until their sum is opened.
            survey_aim.wanted + 2 if registry else 0,
        ),
        downlink_codec=settings.downlink_codec,
        first_version=begin,
        continue_from=continue_from,
        require_same_model=initial.look,
        committee=(lambda: registry.registry.committee) if registry else None,
        look_at_registry=registry.look if registry else lambda: None,
        compare=compare,
        try_out=partial(try_out, settings),
        event_sink=ReportingSink(topology, role="aggregator", name=settings.name),
    )


def promised_before(
    settings: AggregatorSettings, private: "PrivateStart | None", strategy: Strategy, record: ModelVersion
) -> PrivacyPlan | None:
    """Return what a running federation has promised.

    Raises ConfigError when the settings promise something else, or when their keys are others.
    """
    begun = record.plan.privacy
    promised = same_privacy_plan(settings.privacy_target(), begun, honest=settings.secure_min_workers)
    same_sealed_plan(settings.make_sealed_plan(strategy), record.plan.sealed)
    if private:
        private.require_same_secret(record)
    return promised
