"""`python -m fluffle_worker`, the same as `fluffle worker`; and the command of `fluffle evaluator`."""

from __future__ import annotations

from fluffle import logs
from fluffle.checked_task import CheckedTask
from fluffle.command_line import run_program, settings_command
from fluffle.connection import evaluator_connector, worker_connector
from fluffle.errors import TaskError
from fluffle.metrics import metered
from fluffle.stopping import stop_on_signals
from fluffle.task import load_task
from fluffle.telling import ReportingTeller
from fluffle.topology import MIB, topology_of
from fluffle_worker.curves import Curves
from fluffle_worker.evaluator import Evaluator
from fluffle_worker.loop import Worker
from fluffle_worker.progress import RoundDisplay
from fluffle_worker.settings import EvaluatorSettings, WorkerSettings
from fluffle_worker.spool import open_spool

log = logs.get_logger(__name__)


def run(settings: WorkerSettings) -> None:
    """Be a worker until the federation has finished, or until SIGTERM or Ctrl-C."""
    stop = stop_on_signals()
    site = settings.make_site()
    if site.index >= site.count:
        raise TaskError(
            f"this worker is site {site.index}, but there are only {site.count} (0 to {site.count - 1}): "
            f"set --sites to the number of workers, the same for all"
        )
    task = load_task(settings.task)
    examples = CheckedTask(task, stop).prepare(site)
    log.info("data prepared", task=settings.task, site=site.index, sites=site.count, examples=examples)
    topology = topology_of(settings.federation)
    connector = worker_connector(settings, topology, worker=settings.worker_name, stop=stop)
    max_bytes = settings.spool_max_mib * MIB
    with (
        open_spool(settings.spool_folder, worker=settings.worker_name, max_bytes=max_bytes) as spool,
        metered(
            ReportingTeller(topology, role="worker", name=settings.worker_name),
            host=settings.metrics_host,
            port=settings.metrics_port,
            federation=settings.federation,
            role="worker",
            name=settings.worker_name,
            waiting=lambda: spool.waiting,
        ) as teller,
    ):
        worker = Worker(
            name=settings.worker_name,
            task=task,
            topology=topology,
            spool=spool,
            seed=settings.seed + site.index,
            delay_s=settings.delay,
            show_round=RoundDisplay(logs.console()).show,
            stop=stop,
            max_message_bytes=settings.max_message_bytes,
            teller=teller,
        )
        worker.work(
            connector.connect,
            try_to_connect=connector.connect_at_once if settings.train_offline else None,
            patience_s=settings.connect_timeout_s,
        )


def run_evaluator(settings: EvaluatorSettings) -> None:
    """Be an evaluator until the federation has finished, or until SIGTERM or Ctrl-C."""
    stop = stop_on_signals()
    topology = topology_of(settings.federation)
    task = load_task(settings.task)
    curves = Curves(settings.tensorboard) if settings.tensorboard else None
    with metered(
        ReportingTeller(topology, role="evaluator", name=settings.name),
        host=settings.metrics_host,
        port=settings.metrics_port,
        federation=settings.federation,
        role="evaluator",
        name=settings.name,
    ) as teller:
        evaluator = Evaluator(
            name=settings.name,
            task=task,
            topology=topology,
            stop=stop,
            teller=teller,
            notes=[curves.note] if curves else [],
        )
        connector = evaluator_connector(settings, topology, evaluator=settings.name, stop=stop)
        evaluator.work(connector.connect, patience_s=settings.connect_timeout_s)


command = settings_command(
    WorkerSettings,
    run,
    about="Train the newest model on this site's data and publish weight updates, round after round.\n\n"
    "Only updates leave this machine, over one outbound connection. The worker ends with exit code 0 when "
    "the federation has finished.",
)
evaluator_command = settings_command(
    EvaluatorSettings,
    run_evaluator,
    about="Evaluate the newest version of the model on held-out data and report to the aggregator, which "
    "marks the best one and ends the federation when its target has held.",
)

if __name__ == "__main__":
    run_program("fluffle_worker", command)
