"""Running a worker or an evaluator from Python: in a notebook, a thread, or inside another framework.

    from fluffle_worker.running import run_worker

    result = run_worker(task, federation="hospital", broker_url="amqp://site-a:...@broker/%2F", name="site-a")

No signal handler is set, any thread will do, and several may run in one process. `fluffle worker` and
`fluffle evaluator` do the same for a task that is named by its module.
"""

import threading
from pathlib import Path

from structlog.contextvars import bound_contextvars

from fluffle.checked_task import CheckedTask
from fluffle.connection import evaluator_connector, federation_connector, worker_connector
from fluffle.data_source import TaskOfTables, reading_from
from fluffle.errors import ConfigError
from fluffle.event_sink import NULL_SINK, EventSink, ReportingSink, Sinks
from fluffle.logs import get_logger
from fluffle.metrics import metered
from fluffle.settings import SharedSettings, load_arguments
from fluffle.stopping import StopRequested
from fluffle.task import Task, name_of_task
from fluffle.topology import MIB, Topology, topology_of
from fluffle_worker.data.table import with_data_table
from fluffle_worker.evaluator import Evaluator, EvaluatorResult, Note
from fluffle_worker.federation_table import with_federations_table
from fluffle_worker.loop import Worker, WorkerResult
from fluffle_worker.masking import Keys
from fluffle_worker.pace.precision import with_precision
from fluffle_worker.round import ShowRound, show_nothing
from fluffle_worker.sealed_versions import read_key
from fluffle_worker.settings import EvaluatorSettings, WorkerSettings
from fluffle_worker.spool import open_spool

log = get_logger(__name__)


def run_worker(
    task: Task,
    *,
    stop: threading.Event | None = None,
    event_sink: EventSink = NULL_SINK,
    **settings: object,
) -> WorkerResult:
    """Train a task round after round until the federation has finished, or until `stop` is set.

    `settings` are those of `fluffle worker`, such as `federation`, `broker_url`, `name`, `site` and `sites`;
    others come from the environment (FLUFFLE_BROKER_URL), fluffle.toml and the defaults. Unconfirmed updates
    stay in the spool, and the next call with the same name sends them. `event_sink` is told of each trained
    round and of each update that RabbitMQ has confirmed. Raises ConfigError for wrong settings,
    TaskError for a mistake in the task, and BrokerError when the broker refuses the worker permanently or
    cannot be reached for `connect_timeout_s`.
    """
    checked = load_arguments(WorkerSettings, {"task": name_of_task(task), **settings})
    with bound_contextvars(**checked.log_fields()):
        return work(task, checked, stop or threading.Event(), event_sink=event_sink)


def run_evaluator(task: Task, *, stop: threading.Event | None = None, **settings: object) -> EvaluatorResult:
    """Evaluate the newest version of the model until the federation has finished, or until `stop` is set.

    `settings` are those of `fluffle evaluator`; defaults and errors are those of `run_worker`.
    """
    checked = load_arguments(EvaluatorSettings, {"task": name_of_task(task), **settings})
    with bound_contextvars(**checked.log_fields()):
        return evaluate(task, checked, stop or threading.Event())


def work(
    task: Task,
    settings: WorkerSettings,
    stop: threading.Event,
    *,
    show_round: ShowRound = show_nothing,
    event_sink: EventSink = NULL_SINK,
) -> WorkerResult:
    """Be a worker as the settings say; see `run_worker`."""
    try:
        return _work(task, settings, stop, show_round=show_round, event_sink=event_sink)
    except StopRequested:
        log.info("asked to stop before the first round")
        return WorkerResult(ended_by="", rounds=0, aborted=0, version=None, refused=0, waiting=0)


def _work(
    task: Task,
    settings: WorkerSettings,
    stop: threading.Event,
    *,
    show_round: ShowRound,
    event_sink: EventSink,
) -> WorkerResult:
    site = settings.make_site()
    keys, sealed_key = _keys_of(settings), read_key(settings.sealed_secret)
    task = with_data_table(reading_from(task, settings.source("train")), settings.config)
    if isinstance(task, TaskOfTables):
        _require_no_division(settings)
    task = with_precision(task, settings.quantize_training)
    topology = topology_of(settings.federation)
    task = _of_federation(task, settings, topology, stop, name=f"worker/{settings.worker_name}")
    examples = CheckedTask(task, stop).prepare(site)
    log.info("data prepared", task=settings.task, site=site.index, sites=site.count, examples=examples)
    max_bytes = settings.spool_max_mib * MIB
    curves = _curves_in(settings.tensorboard) if settings.tensorboard else None
    with (
        open_spool(settings.spool_folder, worker=settings.worker_name, max_bytes=max_bytes) as spool,
        metered(
            Sinks(ReportingSink(topology, role="worker", name=settings.worker_name), event_sink),
            host=settings.metrics_host,
            port=settings.metrics_port,
            federation=settings.federation,
            role="worker",
            name=settings.worker_name,
            waiting=lambda: spool.waiting,
        ) as metered_sink,
    ):
        worker = Worker(
            name=settings.worker_name,
            task=task,
            topology=topology,
            spool=spool,
            site=site,
            examples=examples,
            seed=settings.seed + site.index,
            delay_s=settings.delay,
            step_delay_s=settings.step_delay,
            train_share=settings.train_share,
            memory_mib=settings.memory_mib,
            show_round=show_round,
            stop=stop,
            max_message_bytes=settings.max_message_bytes,
            event_sink=metered_sink,
            note=(lambda version: curves(version, None)) if curves else None,
            keys=keys,
            insistence=settings.insistence,
            sealed_key=sealed_key,
            sealed_only=settings.must_be_sealed,
        )
        connector = worker_connector(
            settings, topology, worker=settings.worker_name, stop=stop, event_sink=metered_sink
        )
        return worker.work(
            connector.connect,
            try_to_connect=connector.connect_at_once if settings.train_offline else None,
            patience_s=settings.connect_timeout_s,
        )


def _require_no_division(settings: WorkerSettings) -> None:
    """Raise ConfigError for a way to divide a table, and say so where it would be divided among sites."""
    if "split" in settings.model_fields_set:
        raise ConfigError(
            "--split would have no effect: all rows of --data are this site's. Leave it out, and give each "
            "site files of its own"
        )
    if settings.data is not None and "sites" in settings.model_fields_set:
        log.info("all rows of --data are this site's: --sites divides only the data of other ready tasks")


def evaluate(task: Task, settings: EvaluatorSettings, stop: threading.Event) -> EvaluatorResult:
    """Be an evaluator as the settings say; see `run_evaluator`."""
    try:
        return _evaluate(task, settings, stop)
    except StopRequested:
        log.info("asked to stop before the first evaluation")
        return EvaluatorResult(ended_by="", evaluated=0, newest=None)


def _evaluate(task: Task, settings: EvaluatorSettings, stop: threading.Event) -> EvaluatorResult:
    sealed_key = read_key(settings.sealed_secret)
    task = with_data_table(reading_from(task, settings.source("evaluate")), settings.config)
    topology = topology_of(settings.federation)
    task = _of_federation(task, settings, topology, stop, name=f"evaluator/{settings.name}")
    with metered(
        ReportingSink(topology, role="evaluator", name=settings.name),
        host=settings.metrics_host,
        port=settings.metrics_port,
        federation=settings.federation,
        role="evaluator",
        name=settings.name,
    ) as event_sink:
        evaluator = Evaluator(
            name=settings.name,
            task=task,
            topology=topology,
            stop=stop,
            event_sink=event_sink,
            note=_curves_in(settings.tensorboard) if settings.tensorboard else None,
            sealed_key=sealed_key,
            sealed_only=settings.must_be_sealed,
        )
        connector = evaluator_connector(settings, topology, evaluator=settings.name, stop=stop)
        return evaluator.work(connector.connect, patience_s=settings.connect_timeout_s)


def _of_federation(
    task: Task, settings: SharedSettings, topology: Topology, stop: threading.Event, *, name: str
) -> Task:
    name = f"{topology.federation}/{name}/table"
    connector = federation_connector(settings, topology, name=name, stop=stop)
    return with_federations_table(task, connector, topology, stop, patience_s=settings.connect_timeout_s)


def _keys_of(settings: WorkerSettings) -> Keys | None:
    files = settings.secure_files
    if files is None:
        return None
    try:
        # It loads the library of ciphers, which other workers do without.
        from fluffle_worker.secure_keys import SecureKeys
    except ModuleNotFoundError as error:
        raise ConfigError(f"--secure-key needs cryptography: pip install cryptography ({error})") from error
    key, registry, operator = files
    return SecureKeys(
        federation=settings.federation,
        worker=settings.worker_name,
        key=key,
        registry=registry,
        operator=operator,
    )


def _curves_in(folder: Path) -> Note:
    try:
        # tensorboardX comes with the extra [worker], so it may be missing.
        from fluffle_worker.curves import Curves
    except ModuleNotFoundError as error:
        raise ConfigError(f"--tensorboard needs tensorboardX: pip install tensorboardX ({error})") from error
    return Curves(folder).note
