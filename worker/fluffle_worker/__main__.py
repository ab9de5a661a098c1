"""`python -m fluffle_worker`, the same as `fluffle worker`; and the command of `fluffle evaluator`."""

from fluffle.command_line import run_program, settings_command
from fluffle.stopping import stop_on_signals
from fluffle.task import load_task
from fluffle_worker.progress import show_bar
from fluffle_worker.running import evaluate, work
from fluffle_worker.settings import EvaluatorSettings, WorkerSettings


def run(settings: WorkerSettings) -> None:
    """Run a worker until the federation has finished, or until SIGTERM or Ctrl-C."""
    stop = stop_on_signals()
    work(load_task(settings.task), settings, stop, show_round=show_bar)


def run_evaluator(settings: EvaluatorSettings) -> None:
    """Run an evaluator until the federation has finished, or until SIGTERM or Ctrl-C."""
    stop = stop_on_signals()
    evaluate(load_task(settings.task), settings, stop)


command = settings_command(
    WorkerSettings,
    run,
    about="Train the newest model on this site's data and publish weight updates, round after round.\n\n"
    "Only updates leave this machine, over one outbound connection. The worker exits with code 0 when "
    "the federation has finished.",
)
evaluator_command = settings_command(
    EvaluatorSettings,
    run_evaluator,
    about="Evaluate the newest version of the model on held-out data and report to the aggregator, which "
    "marks the best version and ends the federation when the target is reached.",
)

if __name__ == "__main__":
    run_program("fluffle_worker", command)
